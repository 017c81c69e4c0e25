"""DifferentiableTopK: the answer loss under a soft top-k mask that hardens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.segments import floor_share, rank_in_group, segment_max, segment_mean, segment_sum
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.objectives.hardening import mean_retention
from glimpse_lightning.objectives.losses import answer_loss, mean_of_pruned, weighted_mean

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM

_MIN_GATE = math.exp(-30.0)  # negligible next to any kept key, and exact enough in bfloat16
_MARGIN = 20.0
"""Margin beyond the extreme scores, at which a sigmoid is 2e-9 from 0 or 1."""
_HALVINGS = 40
"""Number of halvings of an interval about 50 wide, down to the resolution of fp32."""


class DifferentiableTopK(Objective):
    """``answer loss + weight * BCE(soft mask, hard mask)``: how VisionSelector is trained (arXiv 2510.16598).

    The soft mask ``m_i = sigmoid(s_i + t)`` has the budget as its sum, ``sum_i m_i = B``, in every sample; see
    :func:`soft_top_k`. The hard mask, which gets no gradient, has the ``B`` best tokens. The answer loss is the cross
    entropy of the reference answer. ``weight`` rises from 0, as a cosine over the first ``anneal`` of the training. The
    scores first learn which tokens the answer needs, and then move to 0 or 1, the values of the hard mask.

    Any scorer that returns logits can be trained so. Evidence boxes are not needed, but answers are.

    Departure: ``log m`` is added to the attention logits of a token's key, which hides the token from everything
    after it as pruning does; VisionSelector scales the token's embedding by ``m``.

    Args:
        retention: share of each sample's visual tokens to keep, in (0, 1].
        weight: final weight of the binary cross entropy.
        anneal: share of the training over which it rises.
    """

    needs = ("answers",)

    def __init__(self, retention: float = 0.11, weight: float = 1.0, anneal: float = 0.5) -> None:
        if not 0 < retention <= 1:
            raise ValueError(f"Expected `retention` to be in (0, 1], but got {retention}.")
        if weight < 0:
            raise ValueError(f"Expected `weight` to be at least 0, but got {weight}.")
        self.retention = retention
        self.weight = weight
        self.anneal = anneal

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``answer``, ``bce``, ``kl`` (full || gated), ``hard_retention`` and ``weight``."""
        done = 1.0 if self.anneal <= 0 else min(1.0, self.progress / self.anneal)
        weight = self.weight * 0.5 * (1 - math.cos(math.pi * done))
        masks: list[tuple[Tensor, Tensor, VisualTokens]] = []

        def gate(scores: Tensor, tokens: VisualTokens) -> Tensor:
            soft, hard = self.masks(scores, tokens)
            masks.append((soft, hard, tokens))
            return soft.clamp(min=_MIN_GATE).log().masked_fill(soft <= _MIN_GATE, -torch.inf)

        out = model.distill(batch, gate)
        answer = answer_loss(out.student_logits, batch.answer_ids, batch.answer_mask, batch.weight)
        bce = torch.stack([answer.new_zeros(()), *(_bce(*stage) for stage in masks)]).sum()
        with torch.no_grad():
            kl = weighted_mean(token_kl(out.teacher_logits, out.student_logits, batch.answer_mask), batch.weight)
        logs = {"answer": answer, "bce": bce, "kl": kl, "weight": torch.tensor(weight)}
        if masks:
            _, hard, tokens = masks[-1]
            logs["hard_retention"] = mean_retention(hard, tokens)
        return StepResult(answer + weight * bce, {name: value.detach() for name, value in logs.items()})

    def masks(self, scores: Tensor, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """``(soft [V], hard [V])``: fp32, each sample's summing up to ``retention`` times its tokens (at least 1)."""
        group, total = tokens.groups()
        budget = floor_share(self.retention, total).clamp(min=1)
        hard = (rank_in_group(scores.detach(), group, len(total)) < budget[group]).float()
        return soft_top_k(scores.float(), group, budget.float()), hard


def soft_top_k(scores: Tensor, group: Tensor, budget: Tensor) -> Tensor:
    """``sigmoid(s + t)`` with the ``t`` of each group that makes its sum the budget: ``[V]``, differentiable.

    ``t`` is found by bisection. Its gradient follows from the sum being constant: with ``v = sigmoid'(s + t)`` the
    Jacobian is ``diag(v) - v v' / sum v``, which one Newton step from the found ``t``, its slope held constant, has.
    Where the budget is not below the group's size every value is nearly 1.

    Args:
        scores: ``[V]`` fp32 logits.
        group: ``[V]`` group of each token.
        budget: ``[groups]`` sum that each group's values get.
    """
    groups = len(budget)
    with torch.no_grad():
        low, high = -segment_max(scores, group, groups) - _MARGIN, segment_max(-scores, group, groups) + _MARGIN
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            short = segment_sum((scores + middle[group]).sigmoid(), group, groups) < budget
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        shift = (low + high) / 2
        value = (scores + shift[group]).sigmoid()
        slope = segment_sum(value * (1 - value), group, groups).clamp(min=1e-6)
    spent = segment_sum((scores + shift[group]).sigmoid(), group, groups)
    shift = shift - (spent - spent.detach()) / slope  # leaves the value that bisection found, and adds its gradient
    return (scores + shift[group]).sigmoid()


def _bce(soft: Tensor, hard: Tensor, tokens: VisualTokens) -> Tensor:
    """Mean over each sample's tokens, then over the samples that have any."""
    with torch.autocast(soft.device.type, enabled=False):  # torch refuses it under autocast
        loss = F.binary_cross_entropy(soft.clamp(0, 1), hard, reduction="none")
    group, total = tokens.groups()
    return mean_of_pruned(segment_mean(loss, group, len(total)), total)
