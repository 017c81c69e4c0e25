"""What the zoo's cells really keep: the retention axis moves every method that has a budget."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import glimpse_lightning as gl
from glimpse_lightning import policies, reducers, scorers
from glimpse_lightning.ablation.cells import Cell, cells
from glimpse_lightning.ablation.settings import read
from glimpse_lightning.cli.packaged_recipes import recipes

AXIS = [0.33, 0.22, 0.11, 0.05]
WITHOUT_BUDGET = {
    "full", "no_image", "none_k3", "prumerge", "prumerge_plus", "pooling", "pixel_prune", "vtw", "vip_threshold",
}  # fmt: skip
"""Run once: they decide themselves how much is kept, and their headers say so."""


def part(said: Any, module: Any) -> Any:
    if isinstance(said, str):
        return getattr(module, said)()
    return getattr(module, said["class_path"])(**said.get("init_args", {}))


def pruner_of(model: dict[str, Any]) -> gl.Pruner:
    stages = model.get("stages") or [model]
    return gl.Pruner(
        [
            gl.PruneStage(
                stage["after_layer"],
                part(stage["scorer"], scorers),
                part(stage["policy"], policies),
                part(stage["reducer"], reducers) if "reducer" in stage else None,
            )
            for stage in stages
        ]
    )


def resolved(cell: Cell) -> dict[str, Any]:
    retention = cell.recipe.get("vars", {}).get("retention")
    text = json.dumps(cell.recipe["model"]).replace('"${vars.retention}"', json.dumps(retention))
    assert "${" not in text
    model: dict[str, Any] = json.loads(text)
    if "pruner" in model:  # a saved one, under the cell's policy
        model |= {"after_layer": -1, "scorer": "FixedRatio"}
    return model


@pytest.fixture(scope="module")
def zoo() -> dict[str, list[Cell]]:
    settings = read(recipes()["ablations/methods"]).with_flags({"pruner": {"pruner": "vip", "selector": "selector"}})
    found: dict[str, list[Cell]] = {}
    for cell in cells(settings):
        found.setdefault(str(cell.labels["methods"]), []).append(cell)
    return found


def test_every_method_is_in_the_zoo(zoo: dict[str, list[Cell]]) -> None:
    known = {name.removeprefix("methods/") for name in recipes() if name.startswith("methods/")}
    assert known <= set(zoo)


def test_the_axis_changes_every_method_that_has_a_budget(zoo: dict[str, list[Cell]]) -> None:
    for name, found in zoo.items():
        if name in WITHOUT_BUDGET:
            assert [cell.labels.get("retention") for cell in found] == [None], name
        else:
            assert [cell.labels["retention"] for cell in found] == AXIS, name
            assert len({json.dumps(resolved(cell)) for cell in found}) == len(AXIS), name


def test_methods_without_a_budget_say_so(zoo: dict[str, list[Cell]]) -> None:
    for name in WITHOUT_BUDGET - {"full", "none_k3", "vip_threshold"}:  # which are recipes under another name
        header = recipes()[f"methods/{name}"].read_text().split("\nmodel:")[0]
        assert "no budget" in header or "keeps no token" in header or "a quarter" in header, name


@pytest.mark.parametrize("asked", [0.33, 0.05])
def test_cells_keep_what_the_axis_says(zoo: dict[str, list[Cell]], asked: float) -> None:
    """On a real question of 256 tokens, behind the last stage, to a token."""
    backbone = gl.load_backbone("glimpse-tiny")
    batch = backbone.collate([gl.GlyphVQA("test", size=1)[0]])
    chosen = {
        name: gl.PrunedVLM(backbone, pruner_of(resolved(cell)))
        for name, found in zoo.items()
        for cell in found
        if cell.labels.get("retention") == asked and "resolution" not in resolved(cell)  # which prunes nothing
    }
    with torch.no_grad():
        taps = dict.fromkeys(tap for model in chosen.values() for tap in model.vision_layers)
        prompt = backbone.embed(batch.inputs, tuple(taps))
        shares = {
            name: model.prefill(prompt=prompt, keys=batch.key).kept().float().mean().item()
            for name, model in chosen.items()
        }
    strayed = {name: x for name, x in shares.items() if abs(x - asked) > 1.01 / 256}
    assert not strayed
