"""A budget given as one (`budget: {ratio: 0.1}`) and by its arguments (`ratio: 0.1`) means the same everywhere."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from factories import FACTS

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning.cli.checkpoint_config import checkpoint_config
from glimpse_lightning.cli.recipe_check import CheckCLI, check
from glimpse_lightning.cli.trainer_runs import prepare_parsing
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.pruner.files import init_args
from glimpse_lightning.runtime.errors import GlimpseError

KINDS: list[Any] = [
    kind
    for name in p.__all__
    if issubclass(kind := getattr(p, name), Budgeted) and "budget" in [*inspect.signature(kind).parameters][:1]
    if not inspect.isabstract(kind)
]
PER_ITEM = {"HiPrune", "DominantContextual"}
BEFORE = {  # what a pruner, a run's configuration and a checkpoint held before there was a component
    "ratio": 0.25, "count": None, "trade_off": 0.75, "scale": "log", "per": "item", "min_tokens": 2, "flops": None,
}  # fmt: skip


def recipe(folder: Path, policy: Any) -> Path:
    model = {"backbone": "glimpse-tiny", "after_layer": 1, "scorer": "AttentionRank", "policy": policy}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {"test": "GlyphVQA"}}), encoding="utf-8")
    return path


def policy_of(*paths: Path) -> Any:
    (checked,) = check("test", paths)
    return first_policy(checked.model)


def first_policy(model: Any) -> Any:
    return model._source[0].stages[0].policy


def test_every_policy_with_a_budget_is_here() -> None:
    assert len(KINDS) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_are_the_same_policy(kind: Any) -> None:
    per = "item" if kind.__name__ in PER_ITEM else "sample"
    expected = Budget(ratio=0.25, per=per)  # type: ignore[arg-type]
    forms = [kind(0.25), kind(ratio=0.25), kind(budget=0.25), kind(budget=Budget(ratio=0.25)), kind(expected)]
    assert [form.budget for form in forms] == [expected] * len(forms)
    assert kind(count=7, min_tokens=0).budget == Budget(count=7, per=per, min_tokens=0)  # type: ignore[arg-type]
    assert kind(flops=0.5, per="item").budget == Budget(flops=0.5, per="item")


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named(kind: Any) -> None:
    with pytest.raises(ValueError, match="Expected `budget` or `count`, but got both"):
        kind(Budget(ratio=0.25), count=3)
    with pytest.raises(ValueError, match="exactly one of `ratio`, `count` and `flops`"):
        kind()
    with pytest.raises(ValueError, match="exactly one of"):
        kind(0.25, count=3)
    with pytest.raises(TypeError, match="ratoi"):
        kind(ratoi=0.25)


def test_a_budget_can_be_changed_through_the_policy() -> None:
    policy = p.MMR(0.25)
    policy.ratio = 0.5
    assert policy.budget == Budget(ratio=0.5, per="sample")
    with pytest.raises(ValueError, match="`ratio` to be a fraction"):
        policy.ratio = 2


@pytest.mark.parametrize(
    "keys",
    [
        {"ratio": 0.25, "per": "item", "min_tokens": 2},
        {"budget": {"ratio": 0.25, "per": "item", "min_tokens": 2}},
        {name: value for name, value in BEFORE.items() if name not in ("trade_off", "scale")},
    ],
)
def test_recipes_take_both_forms(tmp_path: Path, keys: dict[str, Any]) -> None:
    said = {"class_path": "MMR", "init_args": {"trade_off": 0.75, "scale": "log", **keys}}
    assert init_args(policy_of(recipe(tmp_path, said))) == BEFORE


def test_a_number_is_a_ratio_in_a_recipe(tmp_path: Path) -> None:
    assert policy_of(recipe(tmp_path, {"class_path": "DPP", "init_args": {"budget": 0.25}})).budget.ratio == 0.25


@pytest.mark.parametrize("flag", ["--model.policy.ratio", "--model.policy.budget", "--model.policy.budget.ratio"])
def test_flags_take_both_forms(tmp_path: Path, flag: str) -> None:
    path = recipe(tmp_path, "DPP")
    prepare_parsing()
    cli = CheckCLI(["test", "--config", str(path), flag, "0.5"], [path])
    assert first_policy(cli.model).budget == Budget(ratio=0.5, per="sample")


@pytest.mark.parametrize("keys", [{"ratoi": 0.25}, {"budget": {"ratoi": 0.25}}])
def test_an_unknown_key_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(GlimpseError, match=r"there is no option 'ratoi'\. Did you mean ratio"):
        policy_of(recipe(tmp_path, {"class_path": "DPP", "init_args": keys}))


def test_a_checkpoint_of_before_names_its_policy(tmp_path: Path) -> None:
    said = {"class_path": "glimpse_lightning.policies.MMR", "init_args": BEFORE}
    model = {"backbone": "glimpse-tiny", "after_layer": 1, "scorer": "AttentionRank", "policy": said}
    torch.save({"hyper_parameters": {"model": model}}, tmp_path / "last.ckpt")
    with checkpoint_config(["--ckpt_path", str(tmp_path / "last.ckpt")]) as (_, file):
        assert init_args(policy_of(Path(file))) == BEFORE


def test_a_saved_pruner_of_before_loads_and_is_written_as_before(tmp_path: Path) -> None:
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.Random(), p.MMR(Budget(count=3)))])
    pruner.build(FACTS)
    config = gl.save_pruner(pruner, tmp_path / "pruner") / "config.json"
    written = json.loads(config.read_text())
    policy = written["stages"][0]["policy"]
    assert policy["init_args"].keys() == BEFORE.keys()
    assert policy["class_path"] == "glimpse_lightning.policies.mmr.MMR"
    policy["init_args"] = BEFORE
    config.write_text(json.dumps(written))
    assert init_args(gl.load_pruner(tmp_path / "pruner").stages[0].policy) == BEFORE


def test_arguments_that_no_attribute_holds_are_not_lost_silently() -> None:
    class Open(p.GridCells):
        def __init__(self, size: int = 2, **options: Any) -> None:
            super().__init__(size)

    with pytest.raises(GlimpseError, match="constructor argument `options`"):
        init_args(Open(note="kept?"))
