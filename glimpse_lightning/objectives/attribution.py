"""Attribution: tokens are labelled by what the full answer would gain from them, and the scorer learns the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from glimpse_lightning.core.segments import segment_sum
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.objectives.hardening import Ending, mean_retention, product
from glimpse_lightning.objectives.losses import mean_of_pruned, weighted_mean
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.ranks import mean_over_ranks

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM

_CLOSED = -20.0
"""Log of a closed gate: attention does not see its key, and gradients still come through."""
_FIRST_COST = 8.0
"""Cost of a missed token before any batch, in kept ones."""
_RATE = 0.05
"""Change of the cost's log in a step whose batch is off its budget by all of it."""
_MOST = math.log(1000.0)
"""Largest size of the cost's log."""
_LAST = 50
"""Number of the last steps, about, whose labels are counted for a remark."""
_FEW = 1e-4
"""Share of closed tokens worth keeping below which a scorer has little to learn from."""


class Attribution(Objective):
    """Cross entropy of keep decisions, with labels from the full model's answer: is a token that is missing missed?

    In each step every gate is opened or closed at random, whatever the scorer says of most of them. The slope of
    ``KL(full || pruned)`` at each closed gate tells, for all of them in one backward pass, what the answer would gain
    if that token came back: attribution by gradients, as of weights at their connections (SNIP, arXiv 1810.02340) or of
    channels by their first-order effect (arXiv 1611.06440). A closed token is **worth** keeping where its gain per unit
    of the gate exceeds ``gain``. The scorer's logits learn these labels by binary cross entropy; no gradient of the
    decoder reaches the scorer.

    So a scorer is told of thousands of tokens in a step which of them an answer needs, in place of what all its
    decisions together did to one loss. Slopes far from 0 mean that attention would go to the token as soon as it could;
    their size says how sharp attention is, and only their order of magnitude says something about need. Open tokens are
    not labelled: where attention is sharp, the loss is flat around them.

    Missing a token that is worth keeping costs as much as keeping ``c`` that are not. The cost ``c`` follows the
    budget: its log rises as long as batches keep less than ``retention``, and falls while they keep more. A threshold
    of 0.5 then keeps a token if its chance to be worth it is above ``1 / (1 + c)``. Which questions get many
    tokens is thus left to their answers, as one cost holds for all.

    Scorers have to return logits. Annotations are not needed: where a sample has no answer, the tokens are those of
    the full model's answer. Half precision (``float16``) cannot hold the slopes at closed gates; ``bfloat16`` can.

    Args:
        retention: mean share of visual tokens to keep, in (0, 1].
        gain: least gain in nats per unit of a gate, above 0, that makes a token worth keeping.
        open: chance, in (0, 1), with which tokens are open that the scorer does not keep.
        missing: share, in (0, 1), of the tokens that the scorer keeps that are closed all the same, so that they, too,
            are labelled.

    Examples:
        >>> stage = gl.PruneStage(after_layer=3, scorer=gl.scorers.LateInteraction(), policy=gl.policies.Threshold())
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("train")[0]])
        >>> sorted(gl.objectives.Attribution(retention=0.05).step(model, batch).logs)
        ['cost', 'hard_retention', 'kl', 'label_loss', 'worth']
    """

    writes_answers = True

    def __init__(self, retention: float = 0.08, gain: float = 3.0, open: float = 0.5, missing: float = 0.3) -> None:
        if not 0 < retention <= 1:
            raise ValueError(f"Expected `retention` to be in (0, 1], but got {retention}.")
        if gain <= 0:
            raise ValueError(f"Expected `gain` to be positive, but got {gain}.")
        for name, value in (("open", open), ("missing", missing)):
            if not 0 < value < 1:
                raise ValueError(f"Expected `{name}` to be in (0, 1), but got {value}.")
        self.retention = retention
        self.gain = gain
        self.open = open
        self.missing = missing
        self._log_cost = torch.tensor(math.log(_FIRST_COST))
        self._worth = torch.tensor(torch.nan)  # until a batch shows an image
        self._ending = Ending(remedy="Train longer, or lower `model.objective.gain` where too few are kept.")

    @override
    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``kl`` with the gates drawn, ``worth`` (share of closed tokens labelled so), ``label_loss``,
        ``cost`` and ``hard_retention``.

        Raises:
            GlimpseError: in half precision.
        """
        leaves: list[Tensor] = []

        def gate(scores: Tensor, tokens: VisualTokens) -> Tensor:
            chance = (1 - self.missing) * scores.detach().float().sigmoid()
            is_open = torch.rand_like(chance) < chance.clamp(min=self.open)
            leaves.append(torch.where(is_open, 0.0, _CLOSED).requires_grad_())
            return leaves[-1]

        out = model.distill(batch, gate)
        if out.student_logits.dtype == torch.float16:
            raise GlimpseError(
                "Attribution reads slopes at closed gates, which float16 rounds to 0. Train with `--trainer.precision "
                "bf16-mixed` or `32-true`, and load the backbone in `bfloat16` or `float32`."
            )
        kl = token_kl(out.teacher_logits, out.student_logits, batch.answer_mask)
        # What later stages score hangs on the gates of earlier ones: that graph is needed again.
        gains = attributed(kl, leaves, retain_graph=len(leaves) > 1)
        weight, cost = batch.weight, self._log_cost.to(kl.device).exp()
        loss, worth = kl.new_zeros(()), kl.new_zeros(())
        closed = [gates < 0 for gates in out.log_gates]
        times = sum(each.int() for each in closed)
        for stage, gain, here in zip(out.stages, gains, closed, strict=True):
            labelled = here & (times == 1)  # a gate says nothing about tokens that another stage hides
            label = (gain > self.gain).float()
            loss = loss + _label_loss(stage.scores.float(), label, labelled, cost, stage.tokens, weight)
            worth = worth + _mean(label, labelled, stage.tokens, weight) / len(gains)
        logs = {"kl": weighted_mean(kl, weight), "worth": worth, "label_loss": loss, "cost": cost}
        if out.stages:
            tokens = out.stages[-1].tokens
            kept = product([(stage.scores > 0).float() for stage in out.stages])
            logs["hard_retention"] = mean_retention(kept, tokens, weight)
            self._charge(logs["hard_retention"], worth, tokens, weight)
            if not batch.blank:
                hard = logs["hard_retention"]
                self._ending.add(model.pruner, hard, hard, self.retention, self.progress)
        return StepResult(loss, {name: value.detach() for name, value in logs.items()})

    def _charge(self, kept: Tensor, worth: Tensor, tokens: VisualTokens, weight: Tensor) -> None:
        """Move the cost by what a batch, of all ranks, keeps, and the running share of tokens labelled worth keeping;
        batches without images do not count.
        """
        total = tokens.groups()[1]
        counted = mean_of_pruned(torch.ones_like(kept).expand(len(total)), total, weight)  # 1 where any is shown
        kept, worth, counted = mean_over_ranks(torch.stack([kept, worth, counted]).detach())
        off = (1 - kept / self.retention).clamp(-1, 1)
        self._log_cost = (self._log_cost.to(kept.device) + _RATE * off * (counted > 0)).clamp(-_MOST, _MOST)
        before = self._worth.to(kept.device)
        mean = torch.where(before.isnan(), worth, before + (worth - before) / _LAST)
        self._worth = torch.where(counted > 0, mean, before)

    @override
    def remarks(self) -> list[str]:
        remarks = self._ending.remarks()
        if self._worth < _FEW:
            remarks.append(
                f"Hardly any closed token is missed ({float(self._worth):.4%} of them in the last steps): with "
                f"{self.open:.0%} of the others open, answers lack nothing, and the scorer has learned little. Lower "
                "`model.objective.open` or `model.objective.gain`."
            )
        return remarks

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"ending": self._ending.state(), "log_cost": self._log_cost.cpu(), "worth": self._worth.cpu()}

    @override
    def load_state_dict(self, state: dict[str, Any], same_ranks: bool = True) -> None:
        self._ending.load(state.get("ending", []))
        self._log_cost = state.get("log_cost", self._log_cost)
        self._worth = state.get("worth", self._worth)


def attributed(loss: Tensor, log_gates: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """What a loss would fall by, per unit of the gate, as each closed gate opens a little.

    Args:
        loss: ``[S]``, each sample's, in which gates of other samples have no part.
        log_gates: one ``[V]`` per stage, leaves of the loss's graph: 0 or -20.
        retain_graph: whether the graph is needed again.

    Returns:
        One ``[V]`` per stage, in units of the loss; of no meaning at open gates.
    """
    if not log_gates:
        return []
    slopes = torch.autograd.grad(loss.sum(), list(log_gates), retain_graph=retain_graph)
    return [-slope * math.exp(-_CLOSED) for slope in slopes]  # d log g = dg / g


def _label_loss(
    scores: Tensor, label: Tensor, labelled: Tensor, cost: Tensor, tokens: VisualTokens, weight: Tensor
) -> Tensor:
    """Cross entropy of ``scores [V]`` with ``label [V]``; tokens worth keeping count ``cost`` times. A scalar."""
    loss = F.binary_cross_entropy_with_logits(scores, label, pos_weight=cost, reduction="none")
    return _mean(loss, labelled, tokens, weight)


def _mean(values: Tensor, labelled: Tensor, tokens: VisualTokens, weight: Tensor) -> Tensor:
    """Mean of ``values [V]`` over a sample's labelled tokens, then over samples with images."""
    group, total = tokens.groups()
    count = segment_sum(labelled.to(values.dtype), group, len(total))
    return mean_of_pruned(segment_sum(values * labelled, group, len(total)) / count.clamp(min=1), total, weight)
