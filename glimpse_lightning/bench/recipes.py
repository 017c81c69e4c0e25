"""Pruners of recipes, to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from glimpse_lightning.ablation.cells import RETENTION, read_recipe
from glimpse_lightning.ablation.overrides import changed, get
from glimpse_lightning.cli.recipe_check import check
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError


def pruners(recipes: list[str], shares: list[float]) -> Iterator[tuple[str, Pruner, float | None]]:
    """The pruner of each recipe, once for each share where its budget is ``vars.retention``: (name, pruner, share).

    Args:
        recipes: files, or names of packaged recipes; those of ``recipes/methods`` also without the folder.
        shares: shares of tokens to keep; none: the recipe's own budget.

    Raises:
        GlimpseError: where a recipe cannot run, or prunes nothing.
    """
    for recipe in recipes:
        tree, name = read_recipe(recipe), Path(recipe).stem
        shared = get(tree, RETENTION) is not None
        with TemporaryDirectory() as folder:
            paths = []
            budgets: list[float | None] = [*shares] if shared and shares else [None]
            for number, share in enumerate(budgets):
                paths.append(Path(folder) / f"{number}" / f"{name}.yaml")
                paths[-1].parent.mkdir()
                text = yaml.safe_dump(changed(tree, {} if share is None else {RETENTION: share}), allow_unicode=True)
                paths[-1].write_text(text, encoding="utf-8")
            for share, checked in zip(budgets, check("test", paths), strict=True):
                pruner = checked.model.described_pruner() if isinstance(checked.model, VLMModule) else None
                if pruner is None:
                    raise GlimpseError(
                        f"{recipe} drops no tokens inside a model, which is what can be measured here. Name a recipe "
                        "with a scorer and a policy, stages, or a saved pruner."
                    )
                yield (name if share is None else f"{name} r={share:g}"), pruner, share
