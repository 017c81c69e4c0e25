"""KL: the softly pruned model learns to answer as the full one does, within a token budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives.base import StepResult
from glimpse_lightning.objectives.flops_budget import flops_share
from glimpse_lightning.objectives.hardening import Hardening, mean_retention, product, sharpening
from glimpse_lightning.objectives.losses import weighted_mean
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.ranks import mean_over_ranks

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM


_MIN_LOG_GATE = -9.0  # exp(-9) is negligible next to any kept key


class KL(Hardening):
    """``KL(full || pruned)`` on the answer tokens + a price on keeping more, or fewer, tokens than the budget.

    Gates are binary-concrete relaxations of the keep decisions (Maddison et al., arXiv 1611.00712): ``g = sigmoid((s +
    noise) / temperature)`` with logistic noise, so that a token of score ``s`` is open with probability
    ``sigmoid(s)``. The noise matters: without it, one small gate for all tokens would cancel in the softmax and cost
    nothing. ``log g`` is added to the attention logits of the token's key. The temperature has to be low: a key hardly
    counts only where ``log g`` is several nats below 0, and at temperatures near 1 nearly closed gates still let their
    tokens through.

    Tokens of scores near 0 have half-open gates in training, where a threshold would keep or drop them. So once the
    budget has reached its target, the logits of gates and budget are multiplied by a factor that rises from 1 to
    ``sharpness``. Noise and temperature fall by the same factor, and gates become the hard decisions of a threshold of
    0.5. In the last steps the factor is constant, and the budget of hard decisions meets its target.

    The budget term is ``budget_weight * (r - target)^2 / target`` with ``r`` the mean of ``sigmoid(s)`` over a sample's
    tokens, averaged over the batch (of all ranks). The samples together have to meet the budget, so a sample that needs
    more tokens may take them from one that needs fewer. Over the first ``anneal`` of the training the target falls from
    ``initial`` to ``retention``, by the same factor in every step.

    Several stages are trained together: their gates multiply, and ``r`` counts the tokens that all of them keep. With
    ``flops`` the budget is one of compute in place of tokens, and each stage's share is learned: ``r`` is then the
    expected share of the decoder's prefill FLOPs (:func:`~.flops_budget.flops_share`), and its target falls to
    ``flops``.

    Scorers have to return logits (keep = sigmoid > 0.5). Annotations are not needed: where a sample has no answer, the
    tokens are those of the full model's answer (:class:`~glimpse_lightning.evaluation.answers.WrittenAnswers`).

    Args:
        retention: mean share of visual tokens to keep, in (0, 1].
        initial: first target, a share of tokens (of FLOPs with ``flops``) in (0, 1]; never below the last one.
        anneal: share of the training over which the target falls.
        temperature: temperature of the gates.
        sharpness: last factor on the logits, at least 1; with 1 gates stay soft.
        budget_weight: weight of the budget term; the price of all tokens, in nats, at one and a half times the target.
        flops: share of the decoder's prefill FLOPs to spend, in (0, 1], in place of ``retention``; by default tokens
            are counted.
    """

    writes_answers = True

    def __init__(
        self,
        retention: float = 0.08,
        initial: float = 0.3,
        anneal: float = 0.6,
        temperature: float = 0.3,
        budget_weight: float = 5.0,
        flops: float | None = None,
        sharpness: float = 10.0,
    ) -> None:
        for name, value in (("retention", retention), ("initial", initial), ("flops", 1 if flops is None else flops)):
            if not 0 < value <= 1:
                raise ValueError(f"Expected `{name}` to be in (0, 1], but got {value}.")
        if temperature <= 0:
            raise ValueError(f"Expected `temperature` to be positive, but got {temperature}.")
        if sharpness < 1:
            raise ValueError(f"Expected `sharpness` to be at least 1, but got {sharpness}.")
        self.retention = retention
        self.initial = initial
        self.flops = flops
        self.anneal = anneal
        self.temperature = temperature
        self.budget_weight = budget_weight
        self.sharpness = sharpness
        super().__init__()

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``kl``, ``budget``, ``target``, soft ``retention``, ``hard_retention``, ``soft_hard_gap``."""
        factor = self.factor
        out = model.distill(batch, lambda scores, _: log_gates(factor * scores.float(), self.temperature))
        kl = weighted_mean(token_kl(out.teacher_logits, out.student_logits, batch.answer_mask), batch.weight)
        tokens = out.stages[-1].tokens
        chances = [(factor * stage.scores.float()).sigmoid() for stage in out.stages]
        choices = [(stage.scores > 0).float() for stage in out.stages]
        weight = batch.weight
        soft, hard = (mean_retention(product(gates), tokens, weight) for gates in (chances, choices))
        spent, more = (soft, {}) if self.flops is None else self._flops(model, tokens, chances, choices, weight)
        target = self.target
        if not batch.blank:
            counted = hard if self.flops is None else more["hard_flops"]
            self._ending.add(model.pruner, spent, counted, self._last_target, self.progress)
        budget = (of_all_ranks(spent) - target).square() / target
        logs = more | {
            "kl": kl, "budget": budget, "retention": soft, "hard_retention": hard, "soft_hard_gap": (soft - hard).abs(),
            "target": torch.tensor(target),
        }  # fmt: skip
        return StepResult(kl + self.budget_weight * budget, {name: value.detach() for name, value in logs.items()})

    @property
    def factor(self) -> float:
        """The factor on the logits at this point of the training."""
        return sharpening(self.progress, self.anneal, self.sharpness)

    @property
    def target(self) -> float:
        """The budget at this point of the training."""
        last = self._last_target
        first = max(self.initial, last)
        done = 1.0 if self.anneal <= 0 else min(1.0, self.progress / self.anneal)
        return first * (last / first) ** done

    @property
    def _last_target(self) -> float:
        return self.retention if self.flops is None else self.flops

    def _flops(
        self,
        model: PrunedVLM,
        tokens: VisualTokens,
        chances: list[Tensor],
        choices: list[Tensor],
        weight: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The expected share of FLOPs, and its figures to log.

        Raises:
            GlimpseError: in the first step, where even keeping no tokens would exceed the budget.
        """
        assert model.pruner is not None and self.flops is not None
        layers, text = [stage.after_layer for stage in model.pruner.stages], tokens.text_length
        assert text is not None
        if self.progress == 0:
            least = float(flops_share([torch.zeros_like(each) for each in chances], layers, tokens, text))
            if self.flops < least:
                raise GlimpseError(
                    f"Expected `flops` of at least {least:.3f}, which text and the layers before the first stage cost, "
                    f"but got {self.flops}. Raise it, or prune after an earlier layer."
                )
        spent = flops_share(chances, layers, tokens, text, weight)
        logs = {"flops": spent, "hard_flops": flops_share(choices, layers, tokens, text, weight)}
        for index in range(len(choices)):
            logs[f"stage{index}_retention"] = mean_retention(product(choices[: index + 1]), tokens, weight)
        return spent, logs


def log_gates(scores: Tensor, temperature: float) -> Tensor:
    """Log of binary-concrete gates ``[V]`` of logits ``scores [V]``; ``-inf`` where that is below -9."""
    uniform = torch.rand_like(scores, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
    noise = uniform.log() - (-uniform).log1p()
    log_gates = F.logsigmoid((scores.float() + noise) / temperature)
    return log_gates.masked_fill(log_gates < _MIN_LOG_GATE, -torch.inf)


def of_all_ranks(mean: Tensor) -> Tensor:
    """The mean over all ranks, with the gradient of this rank's value: gradients are averaged over ranks later."""
    return mean + (mean_over_ranks(mean) - mean).detach()
