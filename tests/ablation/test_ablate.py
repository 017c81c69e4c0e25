"""Small ablations through the real command line."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import SMALL
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

import glimpse_lightning as gl
from glimpse_lightning.ablation.cells import cells
from glimpse_lightning.ablation.command import run
from glimpse_lightning.ablation.runs import CellFolders, CellRunner, checked
from glimpse_lightning.ablation.settings import read
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.cli import main
from glimpse_lightning.cli.packaged_recipes import recipes
from glimpse_lightning.training.module import PruningModule

BASE = {
    "model": {"max_new_tokens": 3},
    "data": {
        "test": {"class_path": "GlyphVQA", "init_args": {"split": "test", "size": 9, "image_size": 224}},
        "eval_batch_size": 3, "num_workers": 0,
    },
    "trainer": {"accelerator": "cpu"},
}  # fmt: skip
TOO_DEEP = {"name": "too_deep", "recipe": "random", "set": {"model.after_layer": 99}}
AXES = {"methods": ["full", "random", TOO_DEEP, "fastervlm", "pooling"], "retention": [0.33]}
NAMES = ["full", "random-retention_0.33", "too_deep-retention_0.33", "fastervlm-retention_0.33", "pooling"]


def write(folder: Path, base: dict[str, Any] | str = BASE, **settings: Any) -> Path:
    (folder / "base.yaml").write_text(base if isinstance(base, str) else yaml.safe_dump(base))
    path = folder / "mini.yaml"
    given = {"base": str(folder / "base.yaml"), "output": str(folder / "out"), "limit": 4, **settings}
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The folder of an ablation with one cell that cannot run; and how often images were embedded."""
    folder, embedded = tmp_path_factory.mktemp("ablate"), []
    embed = Backbone.embed

    def counted(self: Backbone, *args: Any) -> Any:
        embedded.append(1)
        return embed(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "embed", counted)
        assert main(["ablate", "--config", str(write(folder, axes=AXES))]) == 1
    return folder / "out" / "mini", embedded


def test_every_cell_is_an_ordinary_run(finished: tuple[Path, list[int]]) -> None:
    root, embedded = finished
    for name in set(NAMES) - {NAMES[2]}:
        folder = root / name / "test_0"
        results = json.loads((folder / "results.json").read_text())
        assert (results["n"], results["recipe"]) == (4, name)
        assert (folder / "recipe.yaml").read_text() == (root / "cells" / f"{name}.yaml").read_text()
        assert (folder / "config.yaml").is_file()
        assert len((folder / "predictions.jsonl").read_text().splitlines()) == 4
    assert len(embedded) == 2  # 4 questions in batches of 3, for all cells


def test_cells_that_share_answer_as_runs_alone_do(finished: tuple[Path, list[int]], tmp_path: Path) -> None:
    root, _ = finished
    for name in (NAMES[1], NAMES[3]):
        recipe = root / "cells" / f"{name}.yaml"
        assert main(["test", "--config", str(recipe), "--trainer.default_root_dir", str(tmp_path)]) == 0
        ours, theirs = (folder / name / "test_0" / "predictions.jsonl" for folder in (root, tmp_path))
        assert ours.read_text() == theirs.read_text()


def test_a_failed_cell_is_recorded_and_stops_nothing(finished: tuple[Path, list[int]]) -> None:
    root, _ = finished
    error = (root / NAMES[2] / "error.txt").read_text()
    assert "`after_layer` below 8" in error
    assert error.count("\n") == 1
    table = (root / "results.md").read_text()
    assert f"* `{NAMES[2]}`: Expected `after_layer` below 8" in table


def test_markdown(finished: tuple[Path, list[int]]) -> None:
    lines = (finished[0] / "results.md").read_text().splitlines()
    rows = [[column.strip() for column in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header = ["methods", "retention", "tokens entering", "tokens per layer", "KV at decode", "FLOPs"]
    start = [row[:6] for row in rows].index(header)
    glance, (full, random, too_deep, _, pooling) = rows[:start], rows[start + 2 :]
    assert glance[0] == ["methods", "retention 0.33", "at its own share"]
    shown = {row[0]: row[1:] for row in glance[2:]}
    assert shown["full"] == ["-", full[6].split()[0] + " at 100.0%"]
    assert shown["random"] == [random[6].split()[0], "-"]
    assert shown["pooling"] == ["-", pooling[6].split()[0] + " at 25.0%"]
    assert full[:6] == ["full", "-", "100.0%", "100.0%", "100.0%", "100.0%"]
    assert full[7] == "+0.0 [+0.0, +0.0]"
    assert random[:5] == ["random", "0.33", "32.8%", "32.8%", "32.8%"]
    assert too_deep[2:] == ["-"] * 8
    assert pooling[2:5] == ["25.0%"] * 3


def test_latex(finished: tuple[Path, list[int]]) -> None:
    lines = (finished[0] / "results.tex").read_text().splitlines()
    assert lines[0].startswith("% glimpse-lightning ablate --config ") and "commit" in lines[0]
    start = lines.index(r"\midrule") + 1
    table = [line.removesuffix(r" \\").split(" & ") for line in lines[start : lines.index(r"\bottomrule")]]
    cells = {name: at for name, at, _ in table}
    assert r"too\_deep" in cells and cells[r"too\_deep"] == "--"
    assert cells["full"] == cells["pooling"] == "--"  # they have no budget
    values = {name: float(cells[name].removeprefix(r"\textbf{").rstrip("}")) for name in ("random", "fastervlm")}
    best = max(values, key=values.__getitem__)
    assert cells[best].startswith(r"\textbf{")


def test_csv_is_tidy(finished: tuple[Path, list[int]]) -> None:
    with (finished[0] / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["cell"] for line in lines} == set(NAMES)
    (failed,) = [line for line in lines if line["cell"] == NAMES[2]]
    assert (failed["status"], failed["metric"]) == ("failed", "")
    assert "after_layer" in failed["error"]
    keys = [(line["cell"], line["family"], line["metric"]) for line in lines]
    assert len(keys) == len(set(keys))
    found = dict(zip(keys, lines, strict=True))
    scores = [
        json.loads(line)["score"]
        for line in (finished[0] / NAMES[1] / "test_0" / "predictions.jsonl").read_text().splitlines()
    ]
    accuracy = found[NAMES[1], "all", "accuracy"]
    assert float(accuracy["value"]) == sum(scores) / 4
    assert float(accuracy["ci_low"]) <= float(accuracy["value"]) <= float(accuracy["ci_high"])
    assert (accuracy["methods"], accuracy["retention"], accuracy["n"]) == ("random", "0.33", "4")
    for metric in (
        "retention",
        "entering_retention",
        "layer_retention",
        "kv_retention",
        "flops_ratio",
        "accuracy_difference",
    ):
        assert (NAMES[1], "all", metric) in found
    assert any(family not in ("all", "") for _, family, _ in keys)


def test_costs_stand_next_to_accuracy(tmp_path: Path) -> None:
    settings = {"axes": {"methods": ["full", "fixed_ratio"]}, "set": {"model.latency": 1}, "limit": 1}
    assert main(["ablate", "--config", str(write(tmp_path, **settings))]) == 0
    folder = tmp_path / "out" / "mini"
    lines = [line for line in (folder / "results.md").read_text().splitlines() if line.startswith("|")]
    rows = [[column.strip() for column in line.strip("|").split("|")] for line in lines]
    header, full, fixed = rows[-4], *rows[-2:]
    at = header.index("first token")
    assert header[at : at + 4] == ["first token", "next tokens", "KV bytes", "peak memory"]
    assert full[at : at + 4] == ["-"] * 4
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, 0\.\d\d\]", fixed[at + 2])
    page = (folder / "results.md").read_text()
    assert "over 1 question, one at a time" in page and re.search(r"That model: first token [\d.e+]+ ms, next", page)
    with (folder / "results.csv").open() as file:
        found = {(line["cell"], line["metric"]): line for line in csv.DictReader(file) if line["family"] == "all"}
    cost = found["fixed_ratio", "kv_bytes_ratio"]
    assert 0 < float(cost["ci_low"]) <= float(cost["value"]) <= float(cost["ci_high"]) < 1
    assert ("full", "kv_bytes_ratio") not in found


def test_rows_left_out_are_named(tmp_path: Path) -> None:
    image = gl.GlyphVQA("test", 1, image_size=224)[0].images[0]
    image.save(tmp_path / "page.png")
    lines = [{"id": str(n), "question": "what is red", "image": "page.png", "answers": ["star"]} for n in range(2)]
    lines += [{**lines[0], "id": f"bad {n}", "image": f"{n}.png"} for n in range(7)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"test": {"class_path": "JSONL", "init_args": {"path": str(tmp_path / "q.jsonl"), "on_error": "skip"}}}
    base = BASE | {"data": {**data, "eval_batch_size": 3, "num_workers": 0}}
    config = write(tmp_path, base, axes={"methods": ["full", "fixed_ratio"]}, limit=9)
    assert main(["ablate", "--config", str(config)]) == 0
    page = (tmp_path / "out" / "mini" / "results.md").read_text()
    assert "2 questions each" in page and "Left out: 7 rows." in page
    assert page.count("no such image") == 5 and "* and 2 more: `skipped` in the cells' results.json" in page


def test_without_references_methods_are_ranked_by_kl(tmp_path: Path) -> None:
    gl.GlyphVQA("test", 1, image_size=224)[0].images[0].save(tmp_path / "page.png")
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "what is red", "image": "page.png"}\n')
    options = {"path": str(tmp_path / "q.jsonl"), "require_answers": False}
    base = BASE | {"data": {"test": {"class_path": "JSONL", "init_args": options}, "num_workers": 0}}
    config = write(tmp_path, base, axes={"methods": ["full", "fixed_ratio"]}, limit=1)
    assert main(["ablate", "--config", str(config)]) == 0
    page = (tmp_path / "out" / "mini" / "results.md").read_text()
    assert "No answer has references." in page
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    header = next(row for row in rows if "KL" in row)
    full, fixed = (float(row[header.index("KL")]) for row in rows[-2:])
    assert full == 0 < fixed


def test_hparams_have_a_row_for_each_cell(finished: tuple[Path, list[int]]) -> None:
    for name in NAMES:
        events = EventAccumulator(str(finished[0] / "hparams" / name))
        events.Reload()
        (start,) = (
            plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
            for tag, content in events.PluginTagToContent("hparams").items()
            if tag.endswith("session_start_info")
        )
        assert start.hparams["methods"].string_value == name.split("-")[0]
        assert start.hparams["status"].string_value == ("failed" if name == NAMES[2] else "finished")
        assert ("metric/accuracy" in events.Tags()["scalars"]) == (name != NAMES[2])
    assert start.hparams["mode"].string_value == "test"


def test_plots(finished: tuple[Path, list[int]]) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `plots`")
    for name in ("pareto_tokens", "pareto_flops"):
        assert (finished[0] / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "</svg>" in (finished[0] / f"{name}.svg").read_text()


def test_plots_show_the_methods_that_are_asked_for(
    finished: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `plots`")
    root, _ = finished
    monkeypatch.setattr(CellRunner, "_run", lambda self, cell, cells: None)
    config = str(root.parents[1] / "mini.yaml")
    before = (root / "pareto_tokens.svg").read_text()
    assert main(["ablate", "--config", config, "--plot", "full", "fastervlm"]) == 1  # of the cell that cannot run
    drawn = (root / "pareto_tokens.svg").read_text()
    for name in ("random", "pooling"):
        assert f"<!-- {name} -->" in before and f"<!-- {name} -->" not in drawn
    assert "<!-- fastervlm -->" in drawn
    assert "| random |" in (root / "results.md").read_text()
    capsys.readouterr()
    assert main(["ablate", "--config", config, "--plot", "full", "fastvlm"]) == 1
    said = capsys.readouterr().err
    assert "`--plot fastvlm`: the ablation has no such method. Did you mean fastervlm?" in said


def test_finished_cells_are_not_run_again(
    finished: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    ran: list[str] = []
    monkeypatch.setattr(CellRunner, "_run", lambda self, cell, cells: ran.append(cell.name))
    config = str(root.parents[1] / "mini.yaml")
    assert main(["ablate", "--config", config]) == 1
    assert ran == [NAMES[2]]  # it is tried again
    assert "1 of 5 cells failed" in capsys.readouterr().err
    assert main(["ablate", "--config", config, "--limit", "3", "--cells", NAMES[0], NAMES[1]]) == 1
    assert ran[1:] == NAMES[:2]  # other settings
    assert main(["ablate", "--config", config, "--limit", "3", "--cells", "fulll"]) == 1
    assert "Did you mean full" in capsys.readouterr().err


def test_without_matplotlib_the_tables_are_there(
    finished: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.setattr(CellRunner, "_run", lambda self, cell, cells: None)
    run(["--config", str(finished[0].parents[1] / "mini.yaml")])
    out = capsys.readouterr()
    assert "glimpse-lightning[plots]" in out.err
    assert "# Ablation `mini`" in out.out


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"model.scoer.init_args.x": [1]}, ["model.scoer", "Did you mean", "model.scorer"]),
        ({"methods": ["random"], "model.policy.ratioo": [0.1]}, ["cells/random-ratioo_0.1.yaml", "ratioo"]),
        ({"methods": ["random", {"name": "x", "recipe": "random", "set": {"model.scorer": "Rndom"}}]}, ["Random"]),
        ({"trainer.max_stepss": [1]}, ["max_stepss", "trainer.max_steps"]),
    ],
)
def test_mistakes_are_found_before_any_cell_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], axes: dict[str, Any], words: list[str]
) -> None:
    assert main(["ablate", "--config", str(write(tmp_path, axes=axes))]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert not list(tmp_path.rglob("test_*"))


def test_saved_pruners_are_read_before_any_cell_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["random", {"name": "vip", "pruner": True}, {"name": "mine", "pruner": "selector"}]
    config = str(write(tmp_path, axes={"methods": methods}))
    folder = str(tmp_path / "none")
    assert main(["ablate", "--config", config, "--pruner", folder]) == 1
    err = capsys.readouterr().err
    assert f"error: Cell 'vip': Expected a pruner's folder or a Hugging Face id `owner/name`, but {folder}" in err
    assert "note: Left out, for want of a saved pruner: mine (`--pruner selector=FOLDER`)." in err
    assert not list(tmp_path.rglob("test_*"))


def test_methods_without_their_pruner_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CellRunner, "_run", lambda self, cell, cells: None)
    methods = ["random", {"name": "vip", "pruner": True}, {"name": "mine", "pruner": "selector"}]
    assert main(["ablate", "--config", str(write(tmp_path, axes={"methods": methods}))]) == 1
    said = "Left out, for want of a saved pruner: vip (`--pruner FOLDER`); mine (`--pruner selector=FOLDER`)."
    out = capsys.readouterr()
    assert f"note: {said}" in out.err
    assert said in out.out
    assert said in (tmp_path / "out" / "mini" / "results.md").read_text()


@pytest.mark.parametrize(
    ("pruner", "words"),
    [
        ("one", ["`--pruner one`", "says `pruner: true`", "{name: mine, pruner: true}"]),
        ("selectr=two", ["`--pruner selectr=two`", "`pruner: selectr`", "Did you mean selector?"]),
    ],
)
def test_a_pruner_that_no_method_asks_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pruner: str, words: list[str]
) -> None:
    axes = {"methods": ["random", {"name": "learned", "pruner": "selector"}]}
    assert main(["ablate", "--config", str(write(tmp_path, axes=axes)), "--pruner", pruner]) == 1
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_options_of_a_recipe_are_no_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(write(tmp_path, axes={"methods": ["random"]}))
    assert main(["ablate", "--config", config, "--data.test", "q.csv"]) == 1
    assert "has no option --data.test. " in (error := capsys.readouterr().err)
    assert "`set: {data.test: VALUE}`" in error and "`base`" in error
    assert main(["ablate", "--config", config, "--pruners", "x"]) == 1
    assert "Did you mean --pruner" in capsys.readouterr().err
    assert main(["ablate", "--config", config, "--base", "my.yaml"]) == 1
    error = capsys.readouterr().err
    assert f"my.yaml: no such file; looked for {tmp_path / 'my.yaml'}" in error
    assert "methods/full" not in error


def test_fit_trains_and_tests(tmp_path: Path) -> None:
    """VIP with and without its glimpse token; chance is only tested."""
    random = {"name": "random", "recipe": "random", "mode": "test", "set": {"vars.retention": 0.1}}
    methods = [{"name": "vip"}, {"name": "no_glimpse", "set": {"model.scorer.query": "last"}}, random]
    common = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.fit_baselines": []}
    config = write(tmp_path, SMALL, axes={"methods": methods}, mode="fit", set=common, limit=2)
    assert main(["ablate", "--config", str(config)]) == 0
    root = tmp_path / "out" / "mini"
    for name, command in (("vip", "fit"), ("no_glimpse", "fit"), ("random", "test")):
        results = json.loads((root / name / f"{command}_0" / "results.json").read_text())
        assert (results["command"], results["n"]) == (command, 2)
    assert (root / "no_glimpse" / "fit_0" / "pruner").is_dir()


def test_training_needs_an_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--config", str(write(tmp_path, axes={"methods": ["random"]}, mode="fit"))]) == 1
    assert "Cell 'random' has nothing to train" in capsys.readouterr().err


def test_slurm_prints_a_script_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write(tmp_path, axes={"methods": ["random", "pooling"]}))
    assert main(["ablate", "--config", config, "--launcher", "slurm", "--tasks", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/bash")
    assert "--array=0-1" in out
    assert not list(tmp_path.rglob("test_*"))
    assert main(["ablate", "--config", config, "--launcher", "slurm", "--devices_per_cell", "2"]) == 1
    assert "`devices_per_cell` = 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slots", "ray"])
def test_cells_in_processes_of_their_own(tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs on fake devices, or on a local Ray."""
    config = str(write(tmp_path, axes={"methods": ["random", "pooling", "full"]}))
    if launcher == "ray":
        pytest.importorskip("ray", reason="`--launcher ray` needs the extra `ray`")
        assert main(["ablate", "--config", config, "--launcher", "ray", "--tasks", "2"]) == 0
    else:
        monkeypatch.setattr("glimpse_lightning.ablation.command.visible_devices", lambda: ["0", "1"])
        assert main(["ablate", "--config", config]) == 0
    assert len(list((tmp_path / "out" / "mini").glob("*/test_0/results.json"))) == 3
    assert page(tmp_path / "out" / "mini" / "hparams") == dict.fromkeys(("random", "pooling", "full"), "finished")


def page(folder: Path) -> dict[str, str]:
    """Rows of TensorBoard's HParams page over a folder: each one's method and status."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    backend = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request = api_pb2.ListSessionGroupsRequest(slice_size=10, allowed_statuses=list(api_pb2.Status.values()))
    groups = Handler(RequestContext(), backend, "", request).run().session_groups
    return {group.hparams["methods"].string_value: group.hparams["status"].string_value for group in groups}


READY = sorted(name for name in recipes() if name.startswith("ablations/"))


@pytest.mark.parametrize("name", READY)
def test_ready_made_ablations_parse_instantiate_and_build(name: str, tmp_path: Path) -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    vip = gl.Pruner([gl.PruneStage(2, gl.scorers.VIP(vision_layers=[1]), gl.policies.Threshold())])
    vip.build(backbone.facts)
    pruner = gl.save_pruner(vip, tmp_path / "pruner")
    selecting = gl.Pruner([gl.PruneStage(-1, gl.scorers.VisionSelector(), gl.policies.KeepRatio(0.1))])
    selecting.build(backbone.facts)
    selector = gl.save_pruner(selecting, tmp_path / "selector")
    pruners = {"pruner": str(pruner), "tight": str(pruner), "selector": str(selector)}
    settings = read(recipes()[name]).with_flags({"pruner": pruners, "output": str(tmp_path)})
    every = cells(settings)
    assert len({cell.labels["methods"] for cell in every}) == len(settings.axes["methods"])
    # One value of each other axis is enough: the next one differs by a number.
    few = cells(settings.with_flags({"axes": {axis: values if axis == "methods" else values[-1:]
                                              for axis, values in settings.axes.items()}}))  # fmt: skip
    for cell in checked(CellFolders(settings.root), few).values():
        assert isinstance(cell.model, PruningModule)
        cell.model.over(backbone)
        cell.model.configure_model()
