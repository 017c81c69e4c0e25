"""Finished runs compared: synthetic folders whose figures are known, and one made by real runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glimpse_lightning.ablation.compare_report import shortened
from glimpse_lightning.ablation.compared_runs import read_run
from glimpse_lightning.ablation.comparison import compared, flat
from glimpse_lightning.cli import main

CONFIG = {
    "seed_everything": 0,
    "model": {"policy": {"class_path": "KeepRatio", "init_args": {"ratio": 0.1}}, "backbone": "glimpse-tiny"},
    "trainer": {"default_root_dir": "runs", "max_steps": 3},
}
RESULTS = {
    "command": "test", "split": "test", "date": "2026-01-01T00:00:00", "seed": 0, "commit": "abc",
    "data": {"test": {"rows": 40, "digest": "d"}}, "versions": {"torch": "2.11"},
}  # fmt: skip


def question(number: int, score: float | None, **fields: Any) -> dict[str, Any]:
    """The answer to one of four questions about each image: ``B`` is right."""
    return {
        "id": f"q{number}", "family": f"f{number % 2}", "question": f"what is {number}", "references": ["B"],
        "prediction": "B" if score == 1 else f"wrong {score}", "score": score, "kept": 3, "total": 10,
        "image": f"image {number // 4}", **fields,
    }  # fmt: skip


def write_run(
    folder: Path,
    scores: list[float],
    change: Callable[[list[dict[str, Any]]], None] | None = None,
    results: dict[str, Any] | None = None,
    config: dict[str, Any] | None = CONFIG,
) -> Path:
    """A run with a question for each score."""
    lines = [question(number, score) for number, score in enumerate(scores)]
    if change is not None:
        change(lines)
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps(RESULTS | (results or {})))
    if config is not None:
        (folder / "config.yaml").write_text("# lightning.pytorch==2.6.6\n" + yaml.safe_dump(config))
    return folder


FIRST = [1.0] * 30 + [0.0] * 10
SECOND = [0.0] * 6 + [1.0] * 26 + [0.0] * 8
THIRD = [0.0] * 40


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / name / "test_0", scores)
        for name, scores in {"one": FIRST, "two": SECOND, "three": THIRD}.items()
    ]


def compare(*args: object) -> int:
    return main(["compare", *map(str, args)])


def as_json(folder: Path, *args: object) -> dict[str, Any]:
    assert compare(*args, "--output", folder / "out.json") == 0
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_figures_by_hand(runs: list[Path], tmp_path: Path) -> None:
    found = as_json(tmp_path, *runs)
    one, two, three = found["runs"]
    assert [each["run"] for each in found["runs"]] == ["one", "two", "three"]
    assert (one["accuracy"]["value"], one["n"], one["retention"]) == (0.75, 40, pytest.approx(0.3))
    assert two["difference"]["value"] == pytest.approx(-0.1)
    assert (two["lost"], two["won"]) == (6, 2)
    assert (three["lost"], three["won"]) == (30, 0)
    # Sums of the images that differ are -4, -2 and 2: 6 of 8 signs have a mean as far from 0 as 4 questions.
    assert two["p"] == pytest.approx(6 / 8, abs=0.006)
    assert three["p_holm"] == pytest.approx(2 * three["p"])
    assert two["p_holm"] == two["p"]
    assert {family: each["n"] for family, each in two["families"].items()} == {"f0": 20, "f1": 20}
    assert two["families"]["f0"]["value"] == pytest.approx(-0.1)


def test_the_reference_may_be_any_run(runs: list[Path], tmp_path: Path) -> None:
    found = as_json(tmp_path, runs[0], runs[1], "--reference", runs[1])
    assert [each["run"] for each in found["runs"]] == ["two", "one"]
    assert found["runs"][1]["difference"]["value"] == pytest.approx(0.1)
    assert as_json(tmp_path, runs[0], "--reference", runs[1])["runs"] == found["runs"]


def test_the_terminal(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*runs, "--flips", 1) == 0
    said = capsys.readouterr().out
    paragraphs = " ".join(said.split())
    for words in ("75.0 [", "-10.0 [", "p (Holm)", "adjusted for 2 comparisons by Holm's procedure", "f0", "f1"):
        assert words in paragraphs
    assert "* lost by two, q0: what is 0\n    * reference: B\n    * one (3 of 10 tokens): B\n" in said
    assert "settings that differ" not in said


def test_changed_answers_begin_with_the_lost_ones(runs: list[Path], tmp_path: Path) -> None:
    flips = as_json(tmp_path, *runs[:2], "--flips", 7)["runs"][1]["flips"]
    assert [(each["change"], each["id"]) for each in flips] == [*(("lost", f"q{n}") for n in range(6)), ("won", "q30")]


def test_files(runs: list[Path], tmp_path: Path) -> None:
    for suffix in ("md", "csv", "tex"):
        assert compare(*runs, "--flips", 2, "--output", tmp_path / "new" / f"out.{suffix}") == 0
    with (tmp_path / "new" / "out.csv").open() as file:
        table = {(row["run"], row["family"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(table["two", "all", "accuracy_difference"]["value"]) == pytest.approx(-0.1)
    assert table["two", "all", "lost"]["value"] == "6"
    assert ("two", "f1", "accuracy_difference") in table
    page = (tmp_path / "new" / "out.md").read_text()
    assert "| one | 40 | 75.0 [" in page and "## Changed answers" in page and "commit" in page
    tex = (tmp_path / "new" / "out.tex").read_text()
    assert r"one & 40 & \textbf{75.0" in tex and r"two & 40 & \textbf{65.0" in tex and "three & 40 & 0.0" in tex


def test_latex_is_printed_alone(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--latex"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("% glimpse-lightning compare") and "\\bottomrule" in out and "┏" not in out


def test_settings_that_differ(runs: list[Path], tmp_path: Path) -> None:
    other = {
        "seed_everything": 1,
        "model": {"policy": {"class_path": "KeepRatio", "init_args": {"ratio": 0.2}}, "backbone": "glimpse-tiny"},
        "trainer": {"default_root_dir": "elsewhere", "max_steps": 3},
    }
    results = {"seed": 1, "date": "2027-01-01T00:00:00", "versions": {"torch": "2.12"}}
    fourth = write_run(tmp_path / "four" / "test_0", FIRST, results=results, config=other)
    for folder, digest in ((runs[0], "aa"), (fourth, "bb")):
        (folder / "inputs.json").write_text(json.dumps({"my/pruner": digest, f"{folder}": digest}))
    assert as_json(tmp_path, runs[0], fourth)["settings"] == {
        "seed": [0, 1],
        "versions.torch": ["2.11", "2.12"],
        "model.policy.ratio": [0.1, 0.2],
        "contents of my/pruner": ["aa", "bb"],
    }


def test_odd_files_end_in_no_traceback(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hand-made files, and an answer with commands for a terminal."""
    odd: dict[str, Any] = {"split": ["a"], "versions": [1, {"a": 2}], "seed": {"x": 1}, "date": 5, "data": 3}
    other = write_run(tmp_path / "odd" / "test_0", FIRST, setting(prediction="\x1b[31m\u202e [b]x", score=0.0), odd)
    (other / "config.yaml").write_text("1: {2: 3}\nnull: 4\nd: 2020-01-01\ntrue: .nan\n")
    for folder, digest in ((runs[0], [1]), (other, {"a": 1})):
        (folder / "inputs.json").write_text(json.dumps({"x": digest}))
    for suffix in ("json", "md", "csv", "tex"):
        assert compare(runs[0], other, "--flips", 9, "--output", tmp_path / f"out.{suffix}") == 0
    said = capsys.readouterr().out
    assert "odd (3 of 10 tokens): ?[31m? [b]x" in said and "\x1b" not in said
    assert as_json(tmp_path, runs[0], other)["settings"]["contents of x"] == [[1], {"a": 1}]


def test_images_that_are_not_known_are_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def older(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            del line["image"]

    folders = [write_run(tmp_path / name / "test_0", scores, older) for name, scores in (("a", FIRST), ("b", SECOND))]
    assert compare(*folders) == 0
    assert "(no known images)" in capsys.readouterr().out


def test_flat_keys_are_those_of_the_command_line() -> None:
    stages = [{"after_layer": 1, "policy": {"class_path": "TopK", "init_args": {"count": 2}}}]
    tree = {"model": {"stages": stages, "betas": [0.9, 0.95], "source": {}, "pruner": None, "baselines": []}}
    assert flat(tree) == {
        "model.stages.0.after_layer": 1,
        "model.stages.0.policy": "TopK",
        "model.stages.0.policy.count": 2,
        "model.betas": [0.9, 0.95],
    }


def test_long_values_are_shown_where_they_differ() -> None:
    shared = "/a/very/long/path/that/all/the/runs/have/in/common"
    first, second, none = shortened([f"{shared}/one/pruner", f"{shared}/two/pruner", None])
    assert first != second and "one/pruner" in first and first.startswith("…") and none == "not set"
    assert len(shortened(["x" * 500, "y"])[0]) <= 40
    assert shortened([0.1, "a b"]) == ["0.1", "a b"]


def test_a_recipe_s_folder_means_its_newest_finished_run(runs: list[Path], tmp_path: Path) -> None:
    folder = runs[0].parent
    newest = write_run(folder / "fit_0", SECOND, results={"date": "2026-05-05T00:00:00", "command": "fit"})
    (folder / "test_10").mkdir()  # not finished
    assert read_run(folder).path == newest.resolve()


def test_a_suite_is_compared_by_task(tmp_path: Path) -> None:
    for name, score in {"one": 1.0, "two": 0.0}.items():
        folder = tmp_path / name / "test_0"
        (folder / "predictions").mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"command": "test", "data": {"pope": {"digest": "d"}}}))
        for task in ("gqa", "pope"):
            lines = [question(number, score if task == "pope" else 1.0, task=task) for number in range(8)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "predictions" / f"{task}.0.jsonl").write_text(text)
    found = as_json(tmp_path, tmp_path / "one", tmp_path / "two")
    differences = {task: each["value"] for task, each in found["runs"][1]["families"].items()}
    assert differences == {"gqa": 0.0, "pope": -1.0}
    assert "no config.yaml" in found["remarks"][0]


def test_other_data_are_remarked(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def repainted(lines: list[dict[str, Any]]) -> None:
        lines[0]["image"] = "other"

    data = {"test": {"rows": 20, "digest": "e"}}
    fewer = write_run(tmp_path / "few" / "test_0", FIRST[:20], repainted, {"data": data, "split": "val"})
    found = as_json(tmp_path, runs[0], fewer)
    assert found["runs"][1]["difference"]["n"] == 20
    (remark,) = found["remarks"]
    for words in ("other split (val and test)", "other data", "20 common questions of 20 and 40", "1 question"):
        assert words in remark
    assert "other data" in capsys.readouterr().out


def unscored(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        line["score"] = None


def test_data_without_a_digest_are_not_called_other_data(runs: list[Path], tmp_path: Path) -> None:
    older = write_run(tmp_path / "older" / "test_0", FIRST, results={"data": None})
    assert as_json(tmp_path, runs[0], older)["remarks"] == []


def renamed(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        line["id"] = f"x{line['id']}"


def setting(**fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    """A change of the third question."""
    return lambda lines: lines[2].update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, ["no question in common", "'xq0'", "'q0'"]),
        (setting(question="what else"), ["other data", "'q2'", "'what else'", "--data.test"]),
        (setting(references=["C"]), ["other data", "['C']"]),
        (setting(prediction="B", score=0.5), ["scored in different ways", "'q2'", "--model.metric"]),
        (setting(id="q1", question="twice"), ["two questions have the id 'q1'"]),
        (unscored, ["no common question with a score", "with answers"]),
        (setting(score="1"), ["`score`", "'q2'"]),
        (setting(score=float("nan")), ["`score`", "'q2'"]),
        (setting(score=3.0), ["`score`", "'q2'"]),
        (setting(kept=None), ["`kept`"]),
        (setting(prediction=None), ["`prediction`"]),
        (setting(references="B"), ["`references`"]),
        (setting(family=None), ["`family`"]),
        (lambda lines: lines.clear(), ["no scored answers"]),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_paired(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, words: list[str]
) -> None:
    other = write_run(tmp_path / "other" / "test_0", FIRST, change)
    assert compare(runs[0], other) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in words:
        assert word in said


def truncated(run: Path) -> list[object]:
    path = run / "results.json"
    path.write_text(path.read_text()[:20])
    return [run]


def without(name: str, results: dict[str, Any] | None = None) -> Callable[[Path], list[object]]:
    def change(run: Path) -> list[object]:
        (run / name).unlink()
        if results:
            (run / "results.json").write_text(json.dumps(results))
        return [run]

    return change


def part_of_a_run(run: Path) -> list[object]:
    (run / "predictions").mkdir()
    (run / "predictions" / "pope.0.jsonl").touch()
    return [run / "predictions"]


def no_mapping(run: Path) -> list[object]:
    (run / "config.yaml").write_text("- a\n")
    return [run]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: [], ["at least two runs"]),
        (lambda run: [run.parents[1] / "one"], ["named twice"]),
        (lambda run: [run.parents[1] / "tow"], ["there is none", "Did you mean two"]),
        (lambda run: [run / "predictions.jsonl"], ["it is a file", "Name the folder of its run"]),
        (part_of_a_run, ["it holds pope.0.jsonl", "Name the folder of its run, "]),
        (without("results.json"), ["has not finished", "Give its command again"]),
        (lambda run: [run.parents[1]], ["or a folder of such runs", "it holds one, three, two"]),
        (truncated, ["results.json", "reading it failed"]),
        (no_mapping, ["config.yaml", "expected a mapping"]),
        (without("predictions.jsonl"), ["no scored answers", "Run its command again"]),
        (without("predictions.jsonl", {"command": "fit"}), ["model.test_after_fit"]),
        (without("predictions.jsonl", {"command": "predict"}), ["`predict` scores nothing"]),
        (lambda run: [run, "--flips", "-1"], ["`--flips` of at least 0"]),
        (lambda run: [run, "--flips", "few"], ["invalid int value", "compare --help"]),
        (lambda run: [run, "--flip", "3"], ["Did you mean --flips"]),
        (lambda run: [run, "--data.test", "x"], ["takes no option of a recipe"]),
        (lambda run: [run, "--output", "x.txt"], [".md, .json, .csv, .tex", "'.txt'"]),
        (lambda run: [run, "--output", run / "results.json"], ["the run's own"]),
        (lambda run: [run, "--output", run / "config.yaml" / "x.md"], ["writing failed"]),
    ],
)
def test_mistakes_are_named(
    runs: list[Path], capsys: pytest.CaptureFixture[str], change: Callable[[Path], list[object]], words: list[str]
) -> None:
    before = (runs[0] / "results.json").read_text()
    assert compare(runs[0], *change(runs[1])) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in words:
        assert word in said
    assert (runs[0] / "results.json").read_text() == before


def test_a_folder_is_not_overwritten(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.md").mkdir()
    assert compare(*runs, "--output", tmp_path / "mine.md") == 1
    assert "it is a folder" in capsys.readouterr().err and (tmp_path / "mine.md").is_dir()


def test_runs_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    outer = write_run(tmp_path / "test_0", FIRST)
    inner = write_run(outer / "test_0", SECOND)
    assert compared([read_run(outer), read_run(inner)]).names == [str(outer.resolve()), str(inner.resolve())]


def test_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.test_size", "8"]
    root = ["--trainer.default_root_dir", str(tmp_path), "--model.max_new_tokens", "4"]
    for share in ("1.0", "0.05"):
        assert main(["test", "--config", "methods/random", "--vars.retention", share, *flags, *root]) == 0
    folders = [tmp_path / "random" / f"test_{number}" for number in (0, 1)]
    found = as_json(tmp_path, *folders)
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    for run, result in zip(found["runs"], results, strict=True):
        assert run["accuracy"]["value"] == pytest.approx(result["metrics"]["accuracy"])
        assert run["retention"] == pytest.approx(result["metrics"]["retention"])
    assert [each["run"] for each in found["runs"]] == ["test_0", "test_1"]
    assert found["settings"] == {"model.policy.ratio": [1.0, 0.05]}
    assert found["remarks"] == []
