"""KL: the softly pruned model must answer as the full one does, within a token budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.objectives.losses import weighted_mean
from glimpse_lightning.ranks import mean_over_ranks
from glimpse_lightning.segments import segment_sum
from glimpse_lightning.visual_tokens import VisualTokens

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model import PrunedVLM

_MIN_LOG_GATE = -30.0  # exp(-30) is nothing beside any kept key, and is still exact enough in bfloat16


class KL(Objective):
    """``KL(full || pruned)`` on the answer tokens + a price on the expected share of tokens kept.

    Gates are binary-concrete relaxations of the keep decisions (Maddison et al., arXiv 1611.00712): ``g = sigmoid((s +
    noise) / temperature)`` with logistic noise, so that a token of score ``s`` is open with probability
    ``sigmoid(s)``. The noise matters: without it, one small gate for all tokens would cancel in the softmax and cost
    nothing. ``log g`` is added to the attention logits of the token's key. The budget term is ``budget_weight *
    relu(r - target)`` with ``r`` the batch's mean of ``sigmoid(s)`` over a sample's tokens, averaged over samples: the
    batch as a whole has to keep the budget, so that a sample that needs more tokens may take them from one that needs
    fewer. The target falls from 1 to ``retention``, as a cosine over the first ``anneal`` of the training, and the
    temperature from its first to its second value with it.

    Needs scorers that return logits (keep = sigmoid > 0.5), and no annotation.

    Args:
        retention: mean share of visual tokens to keep, in (0, 1].
        budget_weight: price, in nats, of keeping all tokens above the budget.
        temperature: at the start and at the end.
        anneal: share of the training after which target and temperature have reached their final values.
    """

    def __init__(
        self,
        retention: float = 0.08,
        budget_weight: float = 10.0,
        temperature: tuple[float, float] = (1.0, 0.3),
        anneal: float = 0.5,
    ) -> None:
        if not 0 < retention <= 1:
            raise ValueError(f"Expected `retention` to be in (0, 1], but got {retention}.")
        if min(temperature) <= 0:
            raise ValueError(f"Expected both temperatures to be positive, but got {temperature}.")
        self.retention = retention
        self.budget_weight = budget_weight
        self.temperature = temperature
        self.anneal = anneal

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``kl``, ``budget``, ``retention`` (soft), ``hard_retention``, ``soft_hard_gap`` and more."""
        done = 1.0 if self.anneal <= 0 else min(1.0, self.progress / self.anneal)
        share = 0.5 * (1 + math.cos(math.pi * done))  # 1 -> 0
        start, end = self.temperature
        temperature = end + (start - end) * share
        target = self.retention + (1 - self.retention) * share

        out = model.distill(batch, lambda scores, _: log_gates(scores, temperature))
        kl = weighted_mean(token_kl(out.teacher_logits, out.student_logits, batch.answer_mask), batch.weight)
        last = out.stages[-1]
        soft = mean_retention(last.scores.float().sigmoid(), last.tokens)
        hard = mean_retention((last.scores > 0).float(), last.tokens)
        budget = F.relu(of_all_ranks(soft) - target)
        logs = {
            "kl": kl, "budget": budget, "retention": soft, "hard_retention": hard, "soft_hard_gap": (soft - hard).abs(),
            "target": torch.tensor(target), "temperature": torch.tensor(temperature),
        }  # fmt: skip
        return StepResult(kl + self.budget_weight * budget, {name: value.detach() for name, value in logs.items()})


def log_gates(scores: Tensor, temperature: float) -> Tensor:
    """Log of binary-concrete gates ``[V]`` of logits ``scores [V]``."""
    uniform = torch.rand_like(scores, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
    noise = uniform.log() - (-uniform).log1p()
    return F.logsigmoid((scores.float() + noise) / temperature).clamp(min=_MIN_LOG_GATE)


def mean_retention(keep: Tensor, tokens: VisualTokens) -> Tensor:
    """Share of a sample's tokens that ``keep [V]`` keeps, averaged over the samples that have any."""
    group, total = tokens.groups()
    share = segment_sum(keep, group, len(total)) / total.clamp(min=1)
    return share.sum() / mean_over_ranks((total > 0).sum().float()).clamp(min=1e-6)


def of_all_ranks(mean: Tensor) -> Tensor:
    """The value of the mean of all ranks, with this one's gradient, which is averaged with the others' later."""
    return mean + (mean_over_ranks(mean) - mean).detach()
