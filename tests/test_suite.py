"""Several datasets in one run: resumed per question, the full model beside the pruned one, scored again without it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from forked import forked
from hub_layouts import write_copy
from PIL import Image
from ranks import on_two_ranks
from runs import run
from torch import distributed

from glimpse_lightning.cli import main
from glimpse_lightning.data.tables.benchmarks import BENCHMARKS
from glimpse_lightning.evaluation import suite
from glimpse_lightning.evaluation.predictions import Prediction, PredictionFiles, read_predictions
from glimpse_lightning.evaluation.suite_report import print_suite, suite_figures, task_figures
from glimpse_lightning.evaluation.tasks import task_metric
from glimpse_lightning.model.storage import save_pruner
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.scorers import Random
from glimpse_lightning.training.module import PruningModule

TASKS = ["docvqa_val", "mme", "mmbench_en_test", "visual_cot/cub", "glyph_vqa"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in TASKS[:3]:
        write_copy(name, tmp_path / "hub" / BENCHMARKS[name].hub_id.split("/")[1])
    (tmp_path / "datas/cot/cub").mkdir(parents=True)
    Image.new("RGB", (56, 28)).save(tmp_path / "datas/cot/cub/1.jpg")
    turns = [{"value": text} for text in ("<image>\nWhat bird?", "[0, 0, 1, 1]", "<image>", "a gull")]
    row = {"question_id": 1, "image": ["cot/cub/1.jpg", "cot/cub/1.jpg###[0, 0, 28, 28]"], "conversations": turns}
    (tmp_path / "cub.json").write_text(json.dumps([row, row]))
    config: dict[str, Any] = {
        "model": {
            "class_path": "SuiteModule",
            "init_args": {"after_layer": 1, "scorer": "Random",
                          "policy": {"class_path": "KeepRatio", "init_args": {"ratio": 0.5}}},
        },
        "data": {
            "class_path": "SuiteData",
            "init_args": {
                "tasks": TASKS, "limit": 3, "eval_batch_size": 2, "num_workers": 0, "max_new_tokens": 4,
                "own": {"mine": {"class_path": "Table", "init_args": {"path": str(tmp_path / "own.jsonl")}}},
                "places": {"data_dir": str(tmp_path / "hub"), "benchmark_dir": str(tmp_path),
                           "img_dir": str(tmp_path / "datas")},
            },
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip
    Image.new("RGB", (56, 28)).save(tmp_path / "a.png")
    own = [{"question": f"{i}?", "answers": "yes", "image": "a.png"} for i in range(4)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_suite_is_answered_reported_and_scored_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("test", recipe, tmp_path / "runs") == 0
    folder = tmp_path / "runs/small/test_0"
    report = json.loads((folder / "suite.json").read_text())
    assert list(report["tasks"]) == [*TASKS, "mine"]
    assert {name: figures["n"] for name, figures in report["tasks"].items()} == {
        "docvqa_val": 1, "mme": 2, "mmbench_en_test": 3, "visual_cot/cub": 2, "glyph_vqa": 3, "mine": 3
    }  # fmt: skip
    assert report["tasks"]["mmbench_en_test"]["accuracy"] is None  # its answers are hidden
    assert 0 < report["tasks"]["glyph_vqa"]["retention"] <= 0.5
    assert set(report["tasks"]["mme"]["metric"]) >= {"perception", "total"}
    assert (report["tasks"]["mine"]["images"], report["tasks"]["glyph_vqa"]["images"]) == (1, 3)
    assert report["tasks"]["mine"]["accuracy_interval"] == [0, 1]  # of one image
    assert (folder / "results.json").is_file()
    shown = capsys.readouterr().out
    assert "mean of tasks" in shown
    lines = read_predictions(folder / "predictions/visual_cot__cub.0.jsonl")
    assert [line.id for line in lines] == ["cub:1#0", "cub:1#1"]
    assert lines[0].references == ["a gull"]
    assert lines[0].full_prediction is not None
    assert 0 < lines[0].kept < lines[0].total

    assert main(["score", str(folder / "predictions"), "--output", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["tasks"].keys() == report["tasks"].keys()
    for name, figures in report["tasks"].items():
        assert again["tasks"][name] == figures


def test_a_killed_run_goes_on_where_it_was(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--data.tasks", "[mme, glyph_vqa]")
    assert run("test", recipe, tmp_path / "whole", *few) == 0
    calls = 0
    answers = suite.answers

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return answers(*args, **kwargs)

    monkeypatch.setattr(suite, "answers", killed)
    assert run("test", recipe, tmp_path / "runs", *few) == 130
    folder = tmp_path / "runs/small/test_0"
    assert not (folder / "results.json").exists()
    before = {path.name: path.read_text() for path in (folder / "predictions").iterdir()}
    assert before
    cut = folder / "predictions" / next(iter(before))
    cut.write_text(before[cut.name] + '{"task": "doc')  # killed in the middle of a line
    monkeypatch.setattr(suite, "answers", answers)
    assert run("test", recipe, tmp_path / "runs", *few) == 0
    assert [path.name for path in (tmp_path / "runs/small").iterdir()] == ["test_0"]
    for name, text in before.items():
        assert (folder / "predictions" / name).read_text().startswith(text)
    whole = tmp_path / "whole/small/test_0"
    assert json.loads((folder / "suite.json").read_text()) == json.loads((whole / "suite.json").read_text())


def test_words_read_in_images_reach_the_question(recipe: Path, tmp_path: Path) -> None:
    write_copy("textvqa_val", tmp_path / "hub/textvqa")
    flags = ("--data.tasks", "[textvqa_val, mme]", "--data.own", "null", "--data.ocr", "true", "--model.full", "false")
    assert run("test", recipe, tmp_path / "runs", *flags) == 0
    folder = tmp_path / "runs/small/test_0/predictions"
    (line,) = read_predictions(folder / "textvqa_val.0.jsonl")
    assert line.question.startswith("What brand is it?\nReference OCR token: dakota\nAnswer")
    assert len(read_predictions(folder / "mme.0.jsonl")) == 2


def _as_a_command(arguments: list[str]) -> int:
    """As ``python -m glimpse_lightning`` runs, so that Lightning starts the other rank by this command."""
    sys.argv = ["glimpse-lightning", *arguments]
    sys.modules["__main__"].__spec__ = find_spec("glimpse_lightning.__main__")
    return main(arguments)


def test_two_ranks_give_the_figures_of_one(recipe: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(recipe.read_text())
    config["data"]["init_args"] |= {"tasks": ["glyph_vqa"], "own": None}
    recipe.write_text(yaml.safe_dump(config))
    assert run("test", recipe, tmp_path / "one") == 0
    flags = ["--trainer.default_root_dir", str(tmp_path / "two"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = forked(_as_a_command, tmp_path, ["test", "--config", str(recipe), *flags])
    assert done.status == 0, done.err
    one, two = (tmp_path / name / "small/test_0" for name in ("one", "two"))
    assert sorted(path.name for path in (two / "predictions").iterdir()) == ["glyph_vqa.0.jsonl", "glyph_vqa.1.jsonl"]
    assert (two / "suite.json").read_text() == (one / "suite.json").read_text()


def test_a_suite_of_the_full_model_alone(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(recipe.read_text())
    config["model"]["init_args"] = {}
    config["data"]["init_args"] |= {"tasks": ["glyph_vqa"], "own": None}
    recipe.write_text(yaml.safe_dump(config))
    assert run("test", recipe, tmp_path / "runs", "--limit", "2") == 0
    report = json.loads((tmp_path / "runs/small/test_0/suite.json").read_text())["tasks"]["glyph_vqa"]
    assert (report["n"], report["retention"], report["agreement"], report["difference"]) == (2, 1.0, 1.0, 0.0)
    assert "Backbone with" not in capsys.readouterr().out
    assert run("test", recipe, tmp_path / "runs", "--limit", "2", "--model.processor.max_pixels", "25088") == 0
    report = json.loads((tmp_path / "runs/small/test_1/suite.json").read_text())["backbone"]
    assert (report["name"], report["image_processor"]["size"]["longest_edge"]) == ("glimpse-tiny", 25088)
    assert "max_pixels 25088" in " ".join(capsys.readouterr().out.split())


def test_a_pruner_of_the_command_line_replaces_the_recipes(recipe: Path, tmp_path: Path) -> None:
    module = PruningModule(after_layer=0, scorer=Random(), policy=KeepRatio(0.25))
    module.configure_model()
    assert module.model.pruner is not None
    save_pruner(module.model.pruner, tmp_path / "pruner")
    flags = ["--data.tasks", "[glyph_vqa]", "--data.own", "null", "--pruner", str(tmp_path / "pruner")]
    assert run("test", recipe, tmp_path / "runs", *flags) == 0
    report = json.loads((tmp_path / "runs/small/test_0/suite.json").read_text())["tasks"]["glyph_vqa"]
    assert report["retention"] == 0.25


def test_metrics_of_own_data_are_chosen_in_the_recipe(recipe: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(recipe.read_text())
    config["data"]["init_args"] |= {
        "tasks": ["mme"],
        "metrics": {"mine": {"name": "POPE", "options": {"reading": "llava"}}},
    }
    recipe.write_text(yaml.safe_dump(config))
    assert run("test", recipe, tmp_path / "runs", "--model.full", "false") == 0
    folder = tmp_path / "runs/small/test_0"
    tasks = json.loads((folder / "suite.json").read_text())["tasks"]
    assert "yes_ratio" in tasks["mine"]["metric"]
    assert "perception" in tasks["mme"]["metric"]
    # A reading that is the user's choice for this task holds where the predictions are scored again.
    for name in ("mine", "mme"):
        lines = read_predictions(folder / f"predictions/{name}.0.jsonl")
        (folder / f"predictions/{name}.0.jsonl").unlink()
        PredictionFiles(folder / "predictions").add([replace(line, prediction="Yes, I think so.") for line in lines])
    assert main(["score", str(folder / "predictions"), "--output", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["tasks"]
    assert (again["mine"]["accuracy"], again["mine"]["metric"]["yes_ratio"]) == (1.0, 1.0)
    assert "perception" in again["mme"]["metric"]
    (folder / "predictions/metrics.json").write_text('{"mine": "POPE"}')
    assert main(["score", str(folder / "predictions")]) == 1


def test_broken_lines_that_are_skipped_are_named_in_the_results(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('{"question"')
    assert run("test", recipe, tmp_path / "runs", "--data.tasks", "[]") == 1
    error = capsys.readouterr().err
    assert "own.jsonl, line 5: broken JSON" in error
    assert "Union" not in error
    flags = ("--data.tasks", "[]", "--model.full", "false", "--data.own.mine.on_error", "skip")
    assert run("test", recipe, tmp_path / "runs", *flags) == 0
    (skipped,) = json.loads((tmp_path / "runs/small/test_0/results.json").read_text())["skipped"]
    assert "line 5: broken JSON" in skipped


def test_a_line_cut_in_the_middle_of_a_letter_is_left_out(tmp_path: Path) -> None:
    files = PredictionFiles(tmp_path)
    files.add([Prediction("mine", str(i), "q", ["a"], "é") for i in range(2)])
    path = tmp_path / "mine.0.jsonl"
    path.write_bytes(path.read_bytes()[: path.read_bytes().rfind("é".encode()) + 1])
    assert list(PredictionFiles(tmp_path).read("mine")) == ["0"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "x"], "<class 'int'>, but got x\n"),
        (["--data.places.data_dir", "/none", "--data.tasks", "[gqa]"], "copy of lmms-lab-encoder/GQA"),
        (["--data.own.mine.class_path", "Tabel"], "Did you mean Table"),
        (["--data.tasks", "[glyph]"], "out of docvqa_val"),
        (["--data.tasks", "[mine]"], "out of docvqa_val"),
        (["--data.tasks", "[gqa, gqa]"], "named twice"),
        (["--limit", "0"], "`data.limit`"),
        (["--data.metrics", "{mine: {name: BLEU}}"], "a metric out of ANLS"),
        (["--data.metrics", "{mine: {name: ANLS, options: {length: raw}}}"], "out of lengths, but got 'length'"),
        (["--data.metrics", "{mine: {name: ANLS, options: {lengths: long}}}"], "`lengths` to be one of"),
        (["--data.metrics", "{mien: {name: ANLS}}"], "visual_cot/cub, glyph_vqa, mine, but got 'mien'"),
        (["--data.tasks", "[visual_cot/vsr]"], "vsr.json"),
    ],
)
def test_mistakes_are_one_paragraph(
    recipe: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("test", recipe, tmp_path / "runs", *flags) == 1
    assert message in capsys.readouterr().err


def _mme_figures() -> dict[str, Any]:
    lines = [
        Prediction("mme", f"{image}#{turn}", "q", ["yes"], "yes", "color", kept=image + 1, total=7)
        for image in range(3)
        for turn in range(2)
    ]
    return task_figures(lines, task_metric("mme"))


def _mme_figures_of_a_rank() -> dict[str, Any]:
    distributed.init_process_group("gloo")
    try:
        return _mme_figures()
    finally:
        distributed.destroy_process_group()


def test_ranks_that_all_read_everything_count_it_once(tmp_path: Path) -> None:
    alone = _mme_figures()
    assert alone["metric"]["color"] == 200
    assert on_two_ranks(_mme_figures_of_a_rank, tmp_path) == [alone, alone]


def _line(name: str, said: str, full: str | None = None, references: tuple[str, ...] = ("a",)) -> Prediction:
    return Prediction("mine", name, "q", list(references), said, full_prediction=full, kept=1, total=4)


def test_figures_of_a_task() -> None:
    lines = [_line("1", "a", "a"), _line("2", "b", "a"), _line("3", "a"), _line("4", "a", "b", ())]
    figures = task_figures(lines, task_metric("mine"))
    assert figures["n"] == 4
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["full_accuracy"] == 1
    assert figures["difference"] == -0.5
    low, high = figures["accuracy_interval"]
    assert 0 <= low < 2 / 3 < high <= 1
    assert figures["agreement"] == pytest.approx(1 / 3)
    assert figures["retention"] == 0.25
    assert figures["metric"] == {"ExactMatch": pytest.approx(2 / 3)}
    empty = task_figures([_line("1", "a", references=())], task_metric("mine"))
    assert (empty["accuracy"], empty["full_accuracy"], empty["metric"]) == (None, None, None)
    mean = suite_figures({"x": figures, "y": empty})
    assert (mean["n"], mean["accuracy"]) == (5, figures["accuracy"])


def width(figures: dict[str, Any]) -> float:
    low, high = figures["accuracy_interval"]
    return high - low


def test_questions_about_one_image_count_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten pages of 20 questions each, which all go right or all go wrong: ten answers, not 200."""
    lines = [
        replace(_line(f"{page}/{number}", "a" if page < 7 else "b", "a"), image=f"page {page}")
        for page in range(10)
        for number in range(20)
    ]
    known, ten = task_figures(lines, task_metric("mine")), task_figures(lines[::20], task_metric("mine"))
    assert (known["n"], known["images"], known["accuracy"]) == (200, 10, 0.7)
    for name in ("accuracy_interval", "full_accuracy_interval", "difference_interval"):
        assert known[name] == pytest.approx(ten[name])
    older = task_figures([replace(line, image="") for line in lines], task_metric("mine"))
    assert older["images"] is None
    assert width(older) < width(known) / 3
    PredictionFiles(tmp_path).add(lines)
    assert read_predictions(tmp_path / "mine.0.jsonl") == lines
    for figures, said in ((known, False), (older, True)):
        print_suite({"[b]mine": figures}, remark="[i]asked[/i]")
        out = " ".join(capsys.readouterr().out.split())
        assert ("Predictions of [b]mine name no image" in out) == said
        assert re.search(r"% \[-?\d+, -?\d+\]", out)
        assert "[i]asked[/i]" in out
        assert "\\" not in out


def test_a_suite_without_references_speaks_of_no_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    print_suite({"mine": task_figures([_line("1", "a", "a", references=())], task_metric("mine"))})
    out = " ".join(capsys.readouterr().out.split())
    assert "agreement" in out
    for word in ("Brackets", "difference", "relative", "pruned"):
        assert word not in out


def test_score_reads_what_test_wrote_and_a_judges_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.jsonl"
    files = PredictionFiles(tmp_path)
    files.add([Prediction("visual_cot/cub", str(i), "q", ["a"], "a") for i in range(2)])
    replies = tmp_path / "replies.txt"
    replies.write_text("".join(json.dumps({"task": "visual_cot/cub", "id": str(i), "reply": f"score: 0.{i + 1}"}) + "\n"
                               for i in range(2)))  # fmt: skip
    assert main(["score", str(tmp_path), "--judge", str(replies), "--output", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["judge"]["score"] == pytest.approx(0.15)
    replies.write_text("")
    assert main(["score", str(tmp_path), "--judge", str(replies)]) == 1
    assert "2 answers of 'visual_cot/cub' have no reply" in capsys.readouterr().err
    file.write_text(json.dumps({"id": "1", "question": "q", "references": ["a b"], "prediction": "a  b", "kl": 1.0}))
    assert main(["score", str(file), "--metric", "ANLS"]) == 0
    pope = tmp_path / "pope.jsonl"
    pope.write_text(json.dumps({"id": "1", "question": "q", "references": ["yes"], "prediction": "Yes."}))
    for reading, accuracy in (("strict", 0.0), ("llava", 1.0)):
        args = ["score", str(pope), "--metric", "POPE", "--option", f"reading={reading}"]
        assert main([*args, "--output", str(tmp_path / "out.json")]) == 0
        assert json.loads((tmp_path / "out.json").read_text())["mean"]["accuracy"] == accuracy
    for args, message in (
        ([str(file), "--metric", "BLEU"], "Expected a metric out of ANLS"),
        ([str(file), "--metric", "ANLS", "--option", "length=raw"], "out of lengths, but got 'length'"),
        ([str(file), "--metric", "ANLS", "--option", "lengths=long"], "`lengths` to be one of"),
        ([str(file), "--option", "lengths=raw"], "what `--option` is of"),
        ([str(tmp_path / "none.jsonl")], "none.jsonl"),
        ([str(recipe_folder(tmp_path))], "there are none"),
    ):
        assert main(["score", *args]) == 1
        assert message in capsys.readouterr().err
    file.write_text('{"id": "1"}\n')
    assert main(["score", str(file)]) == 1
    assert "line 1: expected a prediction" in capsys.readouterr().err


def recipe_folder(path: Path) -> Path:
    folder = path / "empty"
    folder.mkdir()
    return folder
