from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from glimpse_lightning.ablation.cells import Cell, cells
from glimpse_lightning.ablation.command import _pruners
from glimpse_lightning.ablation.overrides import changed, get
from glimpse_lightning.ablation.plots import write_plots
from glimpse_lightning.ablation.report import markdown, write_csv
from glimpse_lightning.ablation.rows import Row, above_floor
from glimpse_lightning.ablation.settings import Settings, read
from glimpse_lightning.runtime.errors import GlimpseError

BASE = {
    "vars": {"retention": 0.2},
    "model": {
        "backbone": "glimpse-tiny",
        "after_layer": 1,
        "scorer": "Random",
        "policy": {"class_path": "KeepRatio", "init_args": {"ratio": "${vars.retention}"}},
        "max_new_tokens": 3,
    },
    "data": {"batch_size": 2},
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


def expand(base: str, axes: dict[str, list[Any]], **kwargs: Any) -> list[Cell]:
    return cells(Settings(name="x", base=base, axes=axes, **kwargs))


def test_overrides_lead_through_classes_and_lists() -> None:
    tree = {"model": {"scorer": "VIP", "policy": {"class_path": "P", "init_args": {"ratio": 1}}, "stages": [{"a": 1}]}}
    new = changed(
        tree,
        {"model.scorer.dropout": 0.1, "model.policy.init_args.ratio": 2, "model.policy.per": "item",
         "model.stages.0.a": 3, "vars.new": [1]},
    )  # fmt: skip
    assert new["model"]["scorer"] == {"class_path": "VIP", "init_args": {"dropout": 0.1}}
    assert new["model"]["policy"]["init_args"] == {"ratio": 2, "per": "item"}
    assert new["model"]["stages"] == [{"a": 3}]
    assert new["vars"] == {"new": [1]}
    assert tree["model"]["scorer"] == "VIP"
    assert get(new, "model.scorer.init_args.dropout") == 0.1
    with pytest.raises(GlimpseError, match=r"stages\.1.*below 1"):
        changed(tree, {"model.stages.1.a": 3})
    with pytest.raises(GlimpseError, match="mapping above 'b'"):
        changed(tree, {"model.stages.0.a.b": 3})


def test_axes_multiply_in_order(base: str) -> None:
    found = expand(base, {"retention": [0.3, 0.1], "seed": [0, 1]})
    assert [cell.name for cell in found] == [
        "retention_0.3-seed_0", "retention_0.3-seed_1", "retention_0.1-seed_0", "retention_0.1-seed_1"
    ]  # fmt: skip
    last = found[-1]
    assert last.labels == {"retention": 0.1, "seed": 1}
    assert (last.recipe["vars"]["retention"], last.recipe["seed_everything"]) == (0.1, 1)
    assert last.recipe["model"]["baselines"] == []
    assert yaml.safe_load(last.text()) == last.recipe


def test_numbers_below_zero_have_names_of_their_own(base: str) -> None:
    assert [cell.name for cell in expand(base, {"layer": [-1, 1]})] == ["layer_minus_1", "layer_1"]


def test_methods_bring_what_prunes_and_nothing_else(base: str) -> None:
    entries = ["fastv", "methods/pooling", {"name": "mine", "set": {"model.scorer": "FixedRatio"}}]
    fastv, pooling, mine = expand(base, {"methods": entries})
    assert fastv.recipe["model"]["scorer"] == "AttentionRank"
    assert fastv.recipe["vars"]["retention"] == 0.11  # the method's own
    assert fastv.recipe["model"]["max_new_tokens"] == 3  # the base's
    assert pooling.recipe["model"]["reducer"]["class_path"] == "PoolCells"
    assert mine.recipe["model"]["scorer"] == "FixedRatio"
    assert mine.recipe["model"]["policy"] == BASE["model"]["policy"]


def test_methods_without_an_axis_run_once(base: str) -> None:
    at = {0.3: {"model.stages.0.policy.ratio": 0.6}, 0.1: {"model.stages.0.policy.ratio": 0.2}}
    staged = {"name": "staged", "recipe": "pyramid_drop", "at": at}
    found = expand(base, {"retention": [0.3, 0.1], "layer": [0, 2], "methods": ["random", "pooling", "vtw", staged]})
    assert [cell.name for cell in found] == [
        *(f"random-retention_{r}-layer_{k}" for r in (0.3, 0.1) for k in (0, 2)),
        "pooling-layer_0", "pooling-layer_2", "vtw-layer_0", "vtw-layer_2",
        "staged-retention_0.3", "staged-retention_0.1",
    ]  # fmt: skip
    assert found[-1].recipe["model"]["stages"][0]["policy"]["init_args"]["ratio"] == 0.2


def test_a_saved_pruner_is_asked_for(base: str) -> None:
    axes = {"methods": ["random", {"name": "vip", "pruner": True, "mode": "test", "reference": True}]}
    assert [cell.name for cell in expand(base, axes)] == ["random"]
    _, vip = expand(base, axes, pruner="some/folder", mode="fit")
    assert vip.recipe["model"]["pruner"] == "some/folder"
    assert "scorer" not in vip.recipe["model"]
    assert (vip.mode, vip.reference) == ("test", True)


def test_saved_pruners_may_have_names(base: str) -> None:
    methods = [{"name": "vip", "pruner": True}, {"name": "learned", "pruner": "selector"}]
    axes = {"methods": ["random", *methods]}

    def found(**pruner: Any) -> list[str]:
        return [f"{cell.name} {get(cell.recipe, 'model.pruner')}" for cell in expand(base, axes, **pruner)[1:]]

    assert found(pruner="one") == ["vip one"]
    assert found(pruner={"selector": "two"}) == ["learned two"]
    assert found(pruner=_pruners(["one", "selector=two"])) == ["vip one", "learned two"]
    assert _pruners(["runs/lr=1/pruner"]) == {"pruner": "runs/lr=1/pruner"}
    assert _pruners(None) is None


def row(asked: float | None, kept: float) -> Row:
    labels = {"methods": "m"} if asked is None else {"methods": "m", "retention": asked}
    cell = Cell(f"m-{asked}", "test", labels, {}, {})
    return Row(cell, Path("run"), None, {"all": {"n": 4.0, "retention": kept}}, {})


def test_nothing_is_drawn_without_an_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `plots`")
    assert write_plots([row(0.33, 0.33)], tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_tables_speak_of_what_they_have() -> None:
    """Without references neither of accuracy nor of its intervals, and no column that is empty in every row."""
    bare = [row(0.33, 0.33), row(0.11, 0.11)]
    bare = [replace(each, figures={"all": {**each.figures["all"], "n": 1.0, "agreement": 0.5}}) for each in bare]
    table = markdown(bare, "x")
    assert "| methods | retention | agreement |" in table
    assert "| methods (agreement) | retention 0.33 | retention 0.11 |\n" in table
    assert "2 cells; 1 question each. Tokens" in table
    for word in ("Brackets", "Difference", "own share", "accuracy"):
        assert word not in table
    scored = [replace(each, scores={"all": {"1": 1.0}}, images={"1": "a"}) for each in bare]
    table = markdown(scored, "x")
    assert "question each. Brackets: 95 % intervals" in table
    assert "(1 image). Difference: to the first row" in table


def scored(cell: Cell, *scores: float) -> Row:
    return Row(cell, Path("run"), None, {"all": {"n": 4.0}}, {"all": dict(zip("abcd", scores, strict=True))})


def test_accuracy_is_measured_from_the_floor_of_its_method(base: str, tmp_path: Path) -> None:
    """A method's own floor beats the ablation's, and at each value of an axis the floor is the one with that value."""
    axes = {
        "methods": ["full", "no_image", {"name": "random", "recipe": "random", "floor": "late"}, "fastv",
                    {"name": "late", "recipe": "random", "set": {"model.after_layer": 3}}],
        "retention": [0.3, 0.1],
    }  # fmt: skip
    found = expand(base, axes, floor="no_image")
    rows = [
        scored(cell, *{
            "full": (1, 1, 1, 1), "no_image": (1, 0, 0, 0), "random-retention_0.3": (1, 1, 1, 0),
            "random-retention_0.1": (1, 0, 0, 0), "late-retention_0.3": (1, 1, 0, 0),
            "late-retention_0.1": (1, 0, 0, 0), "fastv-retention_0.3": (1, 1, 0, 0),
            "fastv-retention_0.1": (0, 0, 0, 0),
        }[cell.name])
        for cell in found
    ]  # fmt: skip
    shares = {row.cell.name: above_floor(rows, row) for row in rows}
    assert shares == pytest.approx({
        "full": 1, "no_image": 0, "random-retention_0.3": 1 / 2, "random-retention_0.1": 0,
        "fastv-retention_0.3": 1 / 3, "fastv-retention_0.1": -1 / 3, "late-retention_0.3": 1 / 3,
        "late-retention_0.1": 0,
    })  # fmt: skip
    table = markdown(rows, "x")
    assert "| above floor |" in table
    assert "the floor is the accuracy of `no_image`, of `late` for random." in table
    write_csv(rows, tmp_path / "x.csv")
    assert "fastv-retention_0.1,test,finished,fastv,0.1,all,above_floor,-0.33" in (tmp_path / "x.csv").read_text()
    bare = [replace(row, cell=replace(row.cell, floor=None)) for row in rows]
    assert "floor" not in markdown(bare, "x")
    assert above_floor([replace(rows[1], cell=rows[0].cell), *rows[1:]], rows[2]) is None, "nothing above the floor"


def test_no_cell_keeps_another_share_in_silence() -> None:
    table = markdown([row(0.33, 0.328), row(0.11, 0.125), row(0.05, 0.041), row(None, 0.25)], "x")
    (_, after) = table.split("Kept another share of the tokens than the axis says:")
    assert after.strip() == "* `m-0.11`: 12.5% instead of 11.0%"
    assert "another share" not in markdown([row(0.33, 0.32), row(None, 0.9)], "x")


@pytest.mark.parametrize(
    "model", [{"processor": {"max_pixels": 784}}, {"init_args": {"processor": {"max_pixels": 784}}}]
)
def test_settings_of_the_processor_stand_below_the_table(model: dict[str, Any]) -> None:
    cell = replace(row(0.33, 0.33).cell, recipe={"model": model})
    table = markdown([replace(row(0.33, 0.33), cell=cell)], "x")
    assert "Settings of the image processor: {'max_pixels': 784}." in table


def test_values_may_be_bundles_and_any_dotted_key(base: str) -> None:
    brief = {"name": "brief", "set": {"data.prompt": "{question} Briefly.", "model.max_new_tokens": 2}}
    found = expand(base, {"data.prompt": ["{question}", brief]}, limit=7)
    assert [cell.name for cell in found] == ["prompt_question", "prompt_brief"]
    assert found[1].recipe["data"] == {
        "batch_size": 2, "test_size": 7, "fit_test_size": 7, "prompt": "{question} Briefly."
    }  # fmt: skip
    assert found[1].recipe["model"]["max_new_tokens"] == 2


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"methods": ["fastvv"]}, ["fastvv", "Did you mean"]),
        ({"methods": [{"name": "x", "recpie": "fastv"}]}, ["'recpie'", "Did you mean recipe"]),
        ({"methods": [{"recipe": "fastv"}]}, ["`name`"]),
        ({"methods": [{"name": "x", "mode": "train"}]}, ["`mode`", "fit or test", "'train'"]),
        ({"methods": ["pooling"], "retention": [0.1]}, ["'retention' changes no cell", "${vars.retention}"]),
        ({"seed": [1, 1]}, ["Two cells are called 'seed_1'"]),
        ({"methods": [{"name": "p", "recipe": "pooling", "at": {0.2: {}}}], "retention": [0.1]}, ["'p'", "0.1", "0.2"]),
        ({"methods": [{"name": "vip", "pruner": True}]}, ["'methods'", "`pruner:`"]),
        (
            {"methods": ["random", {"name": "x", "recipe": "fastv", "floor": "randm"}]},
            ["'randm'", "Did you mean random"],
        ),
        ({"methods": ["random", {"name": "x", "floor": 3}]}, ["'x'", "`floor`", "name of a method", "3"]),
        ({"methods": ["random", {"name": "x", "floor": ["random"]}]}, ["'x'", "`floor`", "['random']"]),
    ],
)
def test_mistakes_in_axes(base: str, axes: dict[str, list[Any]], words: list[str]) -> None:
    with pytest.raises(GlimpseError) as error:
        expand(base, axes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", ["not valid YAML"]),
        ("base: x", ["`base`", "`axes`"]),
        ("{base: x, axes: {seed: [1]}, modes: fit}", ["'modes'", "Did you mean mode"]),
        ("{base: x, axes: {seed: [1]}, mode: train}", ["`mode`", "fit or test", "'train'"]),
        ("{base: x, axes: {seed: 1}}", ["`axes`", "list"]),
        ("{base: x, axes: {seed: [1]}, limit: many}", ["`limit`", "'many'"]),
        ("{base: x, axes: {seed: [1]}, floor: 3}", ["`floor`", "name of a method", "3"]),
        ("{base: x, axes: {seed: [1]}, pruner: 3}", ["`pruner`", "names to folders", "3"]),
        ("{base: x, axes: {seed: [1]}, devices_per_cell: 0}", ["`devices_per_cell`", "0"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(GlimpseError) as error:
        read(path)
    for word in words:
        assert word in str(error.value)


def test_settings_survive_writing_and_flags_beat_them(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("{base: x, axes: {seed: [1]}, limit: 5}")
    settings = read(path).with_flags({"limit": 3, "pruner": None, "output": "there"})
    assert (settings.limit, settings.root) == (3, Path("there/a"))
    (tmp_path / "b.yaml").write_text(settings.text())
    assert read(tmp_path / "b.yaml") == settings
    with pytest.raises(GlimpseError, match="`limit`"):
        settings.with_flags({"limit": 0})
