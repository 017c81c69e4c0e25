"""Ports of methods: what a recipe's stage selects from the inputs of a golden file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.cli.recipe_check import check
from glimpse_lightning.core.visual_tokens import ModelFacts, VisionAttention, VisionKeys, VisionTap, VisualTokens
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.goldens.cases import QUESTION, Case, picked
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires

DEPTH = 32
"""Layers of decoder and vision tower that layers of a recipe are counted in."""


@dataclass(frozen=True)
class Difference:
    """A selection that differs from the recorded one.

    Attributes:
        case, budget: case of the file, and number of tokens asked for.
        kept: number of tokens that the port keeps.
        recorded: number of tokens in the file.
        common: number of those that both keep.
    """

    case: int
    budget: int
    kept: int
    recorded: int
    common: int


def differences(cases: Sequence[Case], select: Callable[[Case, int], Tensor]) -> list[Difference]:
    """Where ``select(case, budget) -> indices`` keeps other tokens than were recorded."""
    found = []
    for number, case in enumerate(cases):
        for budget, recorded in sorted(case.kept.items()):
            mine, theirs = {*select(case, budget).tolist()}, {*recorded.tolist()}
            if mine != theirs:
                found.append(Difference(number, budget, len(mine), len(theirs), len(mine & theirs)))
    return found


def function_port(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[[Case, int], Tensor]:
    """Selection by a function, as ``golden record`` calls it."""
    return lambda case, budget: picked(function, case.inputs, budget, arguments)


def recipe_port(path: Path, name: str) -> Callable[[Case, int], Tensor]:
    """Selection by scorer and policy of a recipe's one stage, with its budget replaced.

    Args:
        path: the recipe.
        name: its name in messages.

    Raises:
        GlimpseError: where the recipe has several stages, a scorer with weights, or a policy without a budget.
    """
    (checked,) = check("test", [path])
    pruner = checked.model.described_pruner() if isinstance(checked.model, VLMModule) else None
    if pruner is None or len(pruner.stages) != 1:
        count = 0 if pruner is None else len(pruner.stages)
        raise GlimpseError(f"{name}: expected a recipe with one prune stage, but it has {count}.")
    (stage,) = pruner.stages
    policy = stage.policy
    if not isinstance(policy, Budgeted):
        raise GlimpseError(f"{name}: {type(policy).__name__} has no budget that could be set to the recorded ones.")

    def select(case: Case, budget: int) -> Tensor:
        pruner.build(_facts(case.inputs["features"].shape[1]))
        if any(True for _ in stage.scorer.parameters()):
            raise GlimpseError(f"{name}: {type(stage.scorer).__name__} has weights of its own, which no file holds.")
        policy.budget = Budget(count=budget, per=policy.budget.per, min_tokens=policy.budget.min_tokens)
        scored = "scores" in case.inputs
        needed = policy.requires if scored else policy.requires | stage.scorer.requires
        tokens = _tokens(case, needed, name)
        with torch.no_grad():
            scores = case.inputs["scores"] if scored else stage.scorer(tokens)
            return policy.select(scores, tokens).nonzero()[:, 0]

    return select


def _facts(width: int) -> ModelFacts:
    return ModelFacts(
        num_layers=DEPTH, num_heads=1, num_kv_heads=1, head_dim=width, hidden_size=width, intermediate_size=width,
        rms_norm_eps=1e-6, vision_layers=DEPTH, vision_hidden_size=width,
    )  # fmt: skip


def _tokens(case: Case, needed: Requires, where: str) -> VisualTokens:
    """The inputs of a case as the tokens of one image, as far as they are ``needed``."""
    inputs, (rows, columns) = case.inputs, case.grid

    def get(name: str) -> Tensor:
        if name not in inputs:
            raise GlimpseError(
                f"{where} reads {name} of the tokens, which the recorded function did not, so the file has none. "
                "Record a function with that parameter, or compare another recipe."
            )
        return inputs[name]

    if needed.probes:
        raise GlimpseError(
            f"{where} reads attention of the decoder. Record a function with a parameter `scores`, which takes the "
            "place of what a scorer makes of it."
        )
    if sum(isinstance(tap, VisionAttention) for tap in needed.vision_layers) > 1:
        raise GlimpseError(f"{where} reads attention of two blocks of the vision tower, of which a file holds one.")
    zeros = torch.zeros(rows * columns, dtype=torch.long)
    return VisualTokens(
        embeds=get("features"),
        hidden=get("features"),
        item=zeros,
        sample=zeros,
        grid=torch.tensor([[1, rows, columns]]),
        item_sample=zeros[:1],
        position=torch.cartesian_prod(zeros[:1], torch.arange(rows), torch.arange(columns)),
        key=zeros[:1],
        facts=_facts(inputs["features"].shape[1]),
        vision={tap: _of_tower(tap, get) for tap in needed.vision_layers},
        text=get("text") if needed.text else None,
        text_sample=zeros[:1].expand(len(get("text"))) if needed.text else None,
        keys=get("keys") if needed.keys else None,
        questions=(QUESTION,),
    )


def _of_tower(tap: VisionTap, get: Callable[[str], Tensor]) -> Tensor:
    if isinstance(tap, VisionAttention):
        return get("attention")[:, None]
    return get("vision_keys" if isinstance(tap, VisionKeys) else "vision")
