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
from glimpse_lightning.engine.pruner import Pruner, PruneStage
from glimpse_lightning.engine.request import Select
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.scorers.base import Scorer


def training_free_scorers(pruner: Pruner) -> dict[str, Scorer]:
    """One of each scorer in ``glimpse_lightning.scorers`` that needs no training and works where ``pruner`` prunes.

    A scorer added to that package shows up in every comparison table by this.
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
    """Baselines of ``model``: its stages, each with a rival's score in place of its own.

    A baseline prunes after the same layers, with the same ``early_kv`` and ``positions``; dropped tokens are gone,
    whatever becomes of them in ``model``. A comparison asks it with :func:`as_many`: then it has of every question as
    many tokens as ``model``, behind every stage. By itself it keeps a fixed share of each question's tokens, for
    callers who know no more than a mean share.

    Args:
        model: the pruned model to compare with.
        rivals: scorers, by name.
        share: mean share of its tokens that a question keeps in ``model``, in [0, 1].
        tokens: mean number of visual tokens of a question. The baselines' ``KeepRatio`` keeps ``share`` and one in
            ``tokens`` more, since it rounds down, by less than a token a question: of all tokens of any questions with
            this mean it keeps ``share`` or more. Questions of one size keep ``share``, rounded up to a whole token.
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
    """A selection for ``model`` that keeps the best tokens of each question, as many as are said for it.

    Args:
        model: a baseline.
        left: for each question of the batch, the tokens to leave behind each stage (:func:`left_by_stage`).
    """
    assert model.pruner is not None
    stages = list(model.pruner.stages)

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        count = torch.tensor([counts[stages.index(stage)] for counts in left], device=scores.device)
        return rank_in_group(scores, tokens.sample, tokens.num_samples) < count[tokens.sample]

    return select
