from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import SMALL, run, write_recipe

import glimpse_lightning
from glimpse_lightning.cli import brief_help, main, packaged_recipes
from glimpse_lightning.cli.data_options import files_as_datasets
from glimpse_lightning.cli.parser_errors import readable
from glimpse_lightning.cli.recipe_files import recipe_name, with_recipes
from glimpse_lightning.cli.trainer_runs import SHORT_FLAGS
from glimpse_lightning.model.storage import save_pruner
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.scorers import Random
from glimpse_lightning.training.module import PruningModule


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The last thing printed on stderr, which must be one paragraph."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_help_is_friendly_and_does_not_wait_for_torch() -> None:
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "glimpse_lightning", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5
    for word in ("fit", "test", "predict", "recipes", "--config vip_kl", "more help"):
        assert word in out.stdout
    assert " torch\n" not in out.stderr


def test_no_arguments_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == glimpse_lightning.__version__


def test_help_of_a_command_explains_our_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help", "all"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for option in ("--model.scorer", "--model.optimizer.lr", "--data.batch_size", "--vars"):
        assert option in out
    assert "peak learning rate" in out


def test_help_of_a_component(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.scorer.help", "VIP"])
    assert end.value.code == 0
    assert "attention_dim" in capsys.readouterr().out


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    assert "vip_kl" in capsys.readouterr().out
    assert main(["recipes", "show", "vip_kl"]) == 0
    text = capsys.readouterr().out
    assert text == packaged_recipes.find_recipe("vip_kl").read_text()
    assert main(["recipes", "copy", "vip_kl", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "vip_kl.yaml").read_text() == text
    assert main(["recipes", "copy", "vip_kl", str(tmp_path / "mine")]) == 1
    assert "exists already" in _error(capsys)


def test_recipes_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout in sight
    path = packaged_recipes.find_recipe("vip_kl")
    for args in (["-c", "vip_kl"], ["--config", "recipes/vip_kl.yaml"]):
        assert with_recipes(["fit", *args]) == (["fit", args[0], str(path)], [path])
    assert with_recipes(["fit", "--config=vip_kl", "--x", "y"])[0] == ["fit", f"--config={path}", "--x", "y"]
    write_recipe(tmp_path, name="vip_kl")
    assert with_recipes(["fit", "--config", "vip_kl"])[1] == [Path("vip_kl")]  # a file comes first


def test_runs_are_named_after_their_recipe(tmp_path: Path) -> None:
    assert recipe_name([]) == "run"
    files = {name: tmp_path / name for name in ("a.yaml", "b/c.yaml", "overlay.yaml", "vip_kl/fit_3/config.yaml")}
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("model: {}\n")
    files["overlay.yaml"].write_text("trainer: {devices: 2}\n")
    assert recipe_name([files["a.yaml"], files["b/c.yaml"]]) == "c"
    assert recipe_name([files["a.yaml"], files["overlay.yaml"]]) == "a"
    assert recipe_name([files["vip_kl/fit_3/config.yaml"]]) == "vip_kl"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["fit", "test", "'trian'"]),
        (["recipes", "burn"], ["recipes list"]),
        (["recipes", "show", "vip_lk"], ["vip_lk", "Did you mean vip_kl"]),
        (["fit", "--config", "vip_lk"], ["vip_lk", "Did you mean vip_kl"]),
        (["test", "--ckpt_path", "none.ckpt"], ["none.ckpt", "checkpoint"]),
        (
            ["test", "--config", "eval/quick", "--data.test", "q.csv"],
            ["`data.test` is not read by a suite", "`data.tasks`"],
        ),
        (
            ["predict", "--config", "vip_kl", "--image", "a.png", "b.png"],
            ["no flag before 'b.png'", "'[a.png, b.png]'"],
        ),
    ],
)
def test_wrong_names_are_one_paragraph(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 1
    error = _error(capsys)
    for word in words:
        assert word in error


def _changed(path: str, value: Any) -> str:
    """SMALL with the value at a dotted path replaced or added."""
    config = yaml.safe_load(SMALL)
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return yaml.safe_dump(config)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.scorer", "VPI", ["`model.scorer`", "'VPI'", "Did you mean VIP", "AttentionRank", "Random"]),
        ("model.policy", "Treshold", ["Did you mean Threshold", "KeepRatio", "TopK", "TopP"]),
        ("model.objective", "KLL", ["Did you mean KL", "Mask"]),
        ("data.train.class_path", "GlyphVQ", ["`data.train`", "Did you mean GlyphVQA", "JSONL"]),
        ("model.stages", [{"after_layer": 1, "scorer": "Rnd", "policy": "TopK"}], ["Did you mean Random"]),
        (
            "model.stages",
            [{"after_layer": 1, "scorer": {"class_path": "VIP", "init_args": {"foo": 1}}, "policy": "TopK"}],
            ["`model.stages`: `scorer`: there is no option 'foo'. `fit --model.stages.scorer.help VIP` lists those"],
        ),
        ("model.scoer", "VIP", ["model.scoer", "Did you mean model.scorer"]),
        ("modell", {"backbone": "x"}, ["modell"]),
        ("model.optimizer.lrr", 1, ["lrr", "model.optimizer.lr"]),
        ("model.scorer.init_args.vison_layers", [1], ["`model.scorer`", "vision_layers"]),
        ("model.objective.init_args.retention", "${vars.x}", ["model.objective.init_args.retention", "vars.x"]),
        ("model.policy", "KeepRatio", ["`model.policy`", "ratio"]),
        ("trainer.max_steps", "many", ["`trainer.max_steps`", "many"]),
        ("data.train.init_args.split", "trian", ["split", "trian"]),
        ("model.objective.init_args.retention", 3.0, ["retention", "3.0"]),
        ("model.pruner", "somewhere", ["scorer", "pruner", "drop all but one"]),
    ],
)
def test_mistakes_in_a_recipe_are_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any, words: list[str]
) -> None:
    assert run("fit", write_recipe(tmp_path, _changed(path, value)), tmp_path / "runs") == 1
    error = _error(capsys)
    for word in words:
        assert word in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.scoer", "VIP"], ["--model.scoer", "--model.scorer"]),
        (["--model.policy.threshhold", "1"], ["threshhold", "threshold"]),
        (["--model.after_layer", "x"], ["`model.after_layer`", "x"]),
        (["--model.after_layer", "1.0"], ["`model.after_layer`", "a share above 0 and below 1", "1.0"]),
        (["--model.after_layer", "8"], ["`after_layer` below 8", "`--model.allow_empty true`", "only the KV cache"]),
        (["--model.after_layer", "99", "--model.early_kv", "keep"], ["`after_layer` below 8", "but got 99"]),
        (
            ["--model.policy.min_tokens", "0"],
            ["Threshold may keep no token", "allow_empty true`", "without any visual"],
        ),
        (["--model.retenshun", "0.2"], ["there is no option --model.retenshun. Did you mean --model.retention"]),
        (["--model.retention", "0.2"], ["budgets of `test` and `predict`", "`--vars.retention`"]),
        (
            ["--model.policy", "TopK"],
            ["either `model.policy.count` or `model.policy.flops`", "`--model.policy.count 20`"],
        ),
        (
            ["--model.policy", "MaxMin"],
            ["one of `model.policy.ratio`, `model.policy.count`", "`--model.policy.ratio 0.1`"],
        ),
        (["--model.policy", "KeepRatio", "--model.policy.ratio", "1.5"], ["argument `model.policy.ratio`", "got 1.5"]),
        (
            [
                "--model.policy",
                "KeepRatio",
                "--model.policy.ratio",
                "0.1",
                "--model.reducer",
                "MergeNearest",
                "--model.reducer.share",
                "7",
            ],
            ["argument `model.reducer.share`", "got 7"],
        ),
        (["--model.backbone", "/nowhere"], ["/nowhere", "glimpse-tiny"]),
        (["--seed", "1"], ["there is no option --seed. Did you mean --seed_everything"]),
        (["--trainer.max_step", "3"], ["there is no option --trainer.max_step.", "--trainer.max_steps"]),
        (
            ["--data.test", "q.jsonl", "--data.test.columns.answers", "x"],
            [
                "--data.test.columns.answers. JSONL has none, but Table does",
                "`--data.test Table --data.test.path FILE`",
            ],
        ),
        (
            ["--data.train", "q.jsonl", "--data.train.root", "x"],
            ["no option 'root'. JSONL has none, but Table does", "`fit --data.train.help JSONL`"],
        ),
        (
            ["--data.val", "q.csv", "--data.val.columns.answer", "x"],
            [
                "--data.val.columns.answer. Did you mean columns.answers",
                "`fit --data.val.help Table` lists those of Table",
            ],
        ),
        (
            ["--data.val.path", "q.csv"],
            [
                "no option 'path'. GlyphVQA has none.",
                "`val: {class_path: Table, init_args: {path: FILE}}`",
                "`val: FILE`",
            ],
        ),
        (["--model.stages.0.foo", "1"], ["no option --model.stages.0.foo.", "`fit --model.stages.help PruneStage`"]),
        (["--limit", "4"], ["`--limit` is for suites", "`--data.test_size`"]),
        (["--model.objective", "null"], ["`model.objective`", "test"]),
        (["--model.scorer", "Random", "--model.objective", "KL"], ["Nothing to train"]),
    ],
)
def test_mistakes_in_flags_are_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *flags) == 1
    error = _error(capsys)
    for word in words:
        assert word in error
    assert not list(tmp_path.glob("runs/small/*"))  # a run that never started leaves nothing


def test_hints_name_the_command_and_no_flags_of_the_parser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", "attention_rank", "--images", "a.png"]) == 1
    error = _error(capsys)
    assert "Did you mean --image?" in error and "--image+" not in error
    assert "`predict --help all` lists every one." in error


def test_only_a_help_that_there_is_is_named() -> None:
    inner = readable("Option 'foo' is not accepted", ["--ratio"], kind=KeepRatio)
    for options, said in ((["--model.policy.help"], True), (["--model.policy"], False)):
        error = readable(f'Parser key "model.policy":\n  Errors:\n    - {inner}', options, "test")
        assert ("`test --model.policy.help KeepRatio` lists" in error) == said
        assert "{" not in error


def test_an_overlay_gives_options_to_the_recipes_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = str(write_recipe(tmp_path, "data: {test: {init_args: {size: 3}}}"))
    with pytest.raises(SystemExit):
        main(["test", "--config", "vip_kl", "--config", overlay, "--print_config"])
    test = yaml.safe_load(capsys.readouterr().out)["data"]["test"]
    assert test["class_path"].endswith("GlyphVQA")
    assert (test["init_args"]["size"], test["init_args"]["split"]) == (3, "test")
    write_recipe(tmp_path, "data: {test: {path: q.csv}}")
    assert main(["test", "--config", "vip_kl", "--config", overlay]) == 1
    assert "no option 'path'. GlyphVQA has none." in _error(capsys)
    write_recipe(tmp_path, "data: {test: {path: q.csv}}")
    assert main(["test", "--config", overlay]) == 1
    error = _error(capsys)
    for word in ("Name the class of the dataset", "{class_path: Table, init_args: {path: FILE}}", "`test: FILE`"):
        assert word in error


def test_an_untrained_scorer_is_not_tested_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    assert run("test", recipe, tmp_path / "runs") == 1
    error = _error(capsys)
    assert "The scorer of recipe 'small' has to be trained first" in error
    assert "--pruner FOLDER" in error
    grpo = "{class_path: GRPO, init_args: {rewards: {exact_match: 1.0}, train: [language_model]}}"
    assert run("test", recipe, tmp_path / "runs", "--model.objective", grpo) == 1
    error = _error(capsys)
    assert "What the GRPO of recipe 'small' refines has to be trained first" in error
    assert "--model.objective null" in error


def test_what_a_refinement_starts_from_is_tested_without_it(tmp_path: Path) -> None:
    module = PruningModule(after_layer=1, scorer=Random(), policy=KeepRatio(0.5))
    module.configure_model()
    assert module.model.pruner is not None
    save_pruner(module.model.pruner, tmp_path / "pruner")
    grpo = "{class_path: GRPO, init_args: {rewards: {exact_match: 1.0}, train: [language_model]}}"
    text = SMALL.replace(
        SMALL[SMALL.index("  after_layer") : SMALL.index("  max_new_tokens")],
        (f"  pruner: {tmp_path / 'pruner'}\n  objective: {grpo}\n"),
    )
    recipe = write_recipe(tmp_path, text)
    assert run("test", recipe, tmp_path / "runs") == 1
    assert run("test", recipe, tmp_path / "runs", "--model.objective", "null", "--model.baselines", "[]") == 0


def test_flags_beat_interpolated_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)

    def retention(*flags: str) -> float:
        with pytest.raises(SystemExit) as end:
            run("fit", recipe, tmp_path, *flags, "--print_config")
        assert end.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        return config["model"]["objective"]["init_args"]["retention"]

    assert retention() == 0.1
    assert retention("--vars.retention", "0.3") == 0.3
    assert retention("--model.objective.retention", "0.4") == 0.4


def test_an_early_interruption_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as during the imports, before there is a run."""

    def interrupted(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("glimpse_lightning.__main__._dispatch", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    monkeypatch.setenv("GLIMPSE_DEBUG", "1")
    with pytest.raises(KeyboardInterrupt):
        main(["fit"])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.test", "in/q.csv"], ["--data.test=Table", "--data.test.path=in/q.csv"]),
        (["--data.predict=q.JSONL", "-x"], ["--data.predict=JSONL", "--data.predict.path=q.JSONL", "-x"]),
        (["--data.train", "a.parquet", "--data.val", "b.tsv"],
         ["--data.train=Table", "--data.train.path=a.parquet", "--data.val=Table", "--data.val.path=b.tsv"]),
        (["--data.test", "JSONL", "--data.test.path", "q.jsonl"], None),
        (["--data.test", "mine.yaml"], None),
        (["--data.test", "--data.val", "b.tsv"], ["--data.test", "--data.val=Table", "--data.val.path=b.tsv"]),
        (["--data.test"], None),
        (["q.csv", "--question", "q.csv"], None),
        (["--data.test", "pages"], ["--data.test=Table", "--data.test.path=pages"]),
        (["--data.test", "GlyphVQA"], None),
    ],
)  # fmt: skip
def test_a_file_of_questions_is_a_dataset(
    args: list[str], expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages").mkdir()
    Path("GlyphVQA").mkdir()  # a class's name is not that of a folder
    assert files_as_datasets(args) == (args if expected is None else expected)


def test_a_recipe_may_name_files_of_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to where the command is typed, as all paths in recipes, and not to the recipe."""
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "pages"):
        Path(folder).mkdir()
    text = "data: {test: in/q.csv, val: q.jsonl, predict: pages, train: null, batch_size: 2}\n"
    recipe = write_recipe(tmp_path / "mine", text)
    with pytest.raises(SystemExit):
        main(["test", "--config", "vip_kl", "--config", str(recipe), "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["test"]["class_path"].endswith(".Table") and data["test"]["init_args"]["path"] == "in/q.csv"
    assert data["val"]["class_path"].endswith(".JSONL") and data["val"]["init_args"]["path"] == "q.jsonl"
    assert data["predict"]["class_path"].endswith(".Table") and data["predict"]["init_args"]["path"] == "pages"
    assert data["train"] is None and data["batch_size"] == 2


@pytest.mark.parametrize(
    ("flags", "file", "expected"),
    [
        (["--data.test", "q.csv"], "", {"path": "q.csv", "size": None, "split": None}),
        (["--data.test=Table", "--data.test.path=q.csv", "--data.test.size=7"], "", {"size": 7, "split": None}),
        (["--data.test.class_path=Table", "--data.test.init_args.path=q"], "", {"path": "q", "size": None}),
        ([], "data: {test: q.csv}", {"path": "q.csv", "size": None, "split": None}),
        ([], "data: {test: {class_path: glimpse_lightning.Table, init_args: {path: q}}}", {"size": None}),
        (["--data.test.path", "r.csv"], "data: {test: {class_path: Table, init_args: {size: 3}}}", {"size": 3}),
        (["--data.test", "DenseGlyphVQA"], "", {"size": 2000, "split": "test"}),
        (["--data.test", "GlyphVQA"], "", {"size": 2000, "split": "test"}),
    ],
)
def test_data_of_ones_own_inherit_nothing_from_the_recipes(
    flags: list[str], file: str, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--config", str(write_recipe(tmp_path, file))] if file else []
    with pytest.raises(SystemExit):
        main(["test", "--config", "vip_kl", *more, *flags, "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["data"]["test"]["init_args"]
    assert {name: options[name] for name in expected} == expected


def test_flags_about_training_are_refused_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for command, flag in (("predict", "--data.batch_size=4"), ("test", "--data.group")):
        assert main([command, "--config", "vip_kl", flag, "2"]) == 1
        assert "which trains nothing: `--data.eval_batch_size`" in _error(capsys)


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise KeyError("a defect")

    monkeypatch.setattr("glimpse_lightning.__main__._dispatch", broken)
    with pytest.raises(KeyError):
        main(["fit"])


@pytest.mark.parametrize("command", brief_help.OPTIONS)
def test_the_short_help_names_options_that_there_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    named = re.findall(r"^  --(\S+)", page, re.MULTILINE)
    assert 10 <= len(named) <= 18
    with pytest.raises(SystemExit):
        main([command, "--help", "all"])
    known = set(re.findall(r"--(\w[\w.]*)", capsys.readouterr().out))
    short = {flag.removeprefix("--") for flag in SHORT_FLAGS}
    assert {name for name in named if not name.startswith("vars.")} <= known | short


def test_the_short_help_imports_nothing_slow() -> None:
    ask = "import sys; from glimpse_lightning.cli import main; main(['fit', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("flag", "there", "not_there"),
    [
        ("--model.scorer.help", {"VIP", "Random"}, {"Scorer"}),
        ("--model.policy.help", {"KeepRatio", "Threshold"}, {"Policy"}),
        ("--model.reducer.help", {"Drop"}, {"Reducer"}),
        ("--model.objective.help", {"KL", "GRPO"}, {"Objective"}),
        ("--model.metric.help", {"ExactMatch", "ANLS"}, {"AnswerMetric"}),
        ("--data.train.help", {"JSONL", "GlyphVQA", "Table"}, {"RowDataset", "Some", "TextDataset"}),
    ],
)
def test_classes_of_a_part_are_listed(
    flag: str, there: set[str], not_there: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", flag]) == 0
    listed = set(re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    assert there <= listed
    assert not not_there & listed
