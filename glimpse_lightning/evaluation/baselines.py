"""Baselines of a pruned model: other scores at the same layers, with as many tokens of each question."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning import scorers
from glimpse_lightning.core.segments import rank_in_group
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.engine.request import Select
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.scorers.base import Scorer


def training_free_scorers(pruner: Pruner) -> dict[str, Scorer]:
    """One of each scorer in ``glimpse_lightning.scorers`` that needs no training and works where ``pruner`` prunes.

    A scorer that is added to that package therefore appears in every comparison table.
    """
    kinds = {name: getattr(scorers, name) for name in sorted(scorers.__all__)}
    return {name: kind() for name, kind in kinds.items() if _is_training_free(kind, pruner)}


def _is_training_free(kind: Any, pruner: Pruner) -> bool:
    if not (inspect.isclass(kind) and issubclass(kind, Scorer)) or inspect.isabstract(kind):
        return False
    if any(parameter.default is parameter.empty for parameter in inspect.signature(kind).parameters.values()):
        return False
    assert pruner.facts is not None
    for stage in pruner.stages:
        scorer = kind()
        try:
            scorer.build(pruner.facts, stage.after_layer)
        except ValueError:  # it cannot score there
            return False
        if next(scorer.parameters(), None) is not None:
            return False
    return True


def baseline_models(
    model: PrunedVLM, rivals: Mapping[str, Scorer], share: float = 1.0, tokens: float = 1.0
) -> dict[str, PrunedVLM]:
    """Baselines of ``model``: pruners with its stages, in which another scorer replaces the stage's own.

    A baseline prunes after the same layers, with the same ``early_kv`` and ``positions``; dropped tokens are removed,
    even if ``model`` merges them. In a comparison, :func:`as_many` replaces its policy, so that it keeps as many tokens
    of every question as ``model``, after every stage. Its own policy keeps a fixed share of each question's tokens, for
    callers that know the mean share only.

    Args:
        model: the pruned model to compare with.
        rivals: scorers of the baselines, by name.
        share: mean share of a question's tokens that ``model`` keeps, in [0, 1].
        tokens: mean number of visual tokens of a question. The baselines' ``KeepRatio`` rounds down, by less than one
            token per question, so its ratio is raised by one token in ``tokens``. Over all questions it then keeps
            ``share`` or more. Questions of equal size keep ``share``, rounded up to a whole token.
    """
    assert model.pruner is not None
    ratio = min(1.0, share + (1 - 1e-6) / tokens) if tokens else share
    pruners = {
        name: Pruner([_rival_stage(stage, scorer, ratio) for stage in model.pruner.stages])
        for name, scorer in rivals.items()
    }
    return {name: PrunedVLM(model.backbone, pruner) for name, pruner in pruners.items()}


def _rival_stage(stage: PruneStage, scorer: Scorer, ratio: float) -> PruneStage:
    own = copy.deepcopy(scorer)  # each stage builds its scorer for its own layer
    return PruneStage(stage.after_layer, own, KeepRatio(ratio), early_kv=stage.early_kv, positions=stage.positions)


def as_many(model: PrunedVLM, left: Sequence[Sequence[int]]) -> Select:
    """A selection for ``model`` that keeps a given number of best tokens of each question.

    Args:
        model: baseline.
        left: number of tokens to keep after each stage, for each question of the batch (:func:`left_by_stage`).
    """
    assert model.pruner is not None
    stages = list(model.pruner.stages)

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        count = torch.tensor([counts[stages.index(stage)] for counts in left], device=scores.device)
        return rank_in_group(scores, tokens.sample, tokens.num_samples) < count[tokens.sample]

    return select
