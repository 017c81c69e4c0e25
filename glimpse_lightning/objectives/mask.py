"""Mask: visual tokens inside the evidence boxes are trained to score high, all others low."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.objectives.base import StepResult
from glimpse_lightning.objectives.hardening import Hardening, mean_retention, product, sharpening
from glimpse_lightning.objectives.losses import answer_loss, mask_loss

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.engine.distillation import StageOutput
    from glimpse_lightning.model.pruned_vlm import PrunedVLM


class Mask(Hardening):
    """``dice_weight * dice + bce_weight * bce`` on evidence boxes ``+ answer_weight * answer loss``.

    GlimpsePrune's stage 1 (arXiv 2508.01548): every stage's scores, which must be logits, are trained to tell tokens
    that an evidence box touches from those that none touches, on the unpruned prompt. With deep supervision the loss is
    the sum over the output heads. The answer loss is the cross entropy of the reference answer after the glimpse, with
    nothing pruned. Samples without boxes count in the answer loss only.

    Dice and BCE can be low at scores near 0, where small differences decide which side of the threshold of 0.5 a token
    is on. With a ``sharpness`` above 1 (the reference has no such option) the logits in both are multiplied by a factor
    that rises from 1, at half of the training, to ``sharpness``. At the end the loss then approximates that of the
    thresholded decisions.

    Args:
        dice_weight: weight of the Dice loss.
        bce_weight: weight of the binary cross entropy.
        answer_weight: factor on the answer loss, which scorers with glimpse tokens have; with 0 it is not computed.
        sharpness: last factor on the logits, at least 1; with 1 logits are not multiplied.
    """

    needs = ("boxes",)

    def __init__(
        self, dice_weight: float = 1.0, bce_weight: float = 0.1, answer_weight: float = 1.0, sharpness: float = 1.0
    ) -> None:
        weights = {"dice_weight": dice_weight, "bce_weight": bce_weight, "answer_weight": answer_weight}
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"Expected argument `{name}` to be at least 0, but got {value}.")
        if sharpness < 1:
            raise ValueError(f"Expected argument `sharpness` to be at least 1, but got {sharpness}.")
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.answer_weight = answer_weight
        self.sharpness = sharpness
        super().__init__()

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``mask``, ``evidence`` (share of tokens touched), soft ``retention``, ``hard_retention``,
        ``soft_hard_gap`` and, where it counts, ``answer``.
        """
        outputs = model.glimpse_forward(batch, answers=self.answer_weight > 0)
        assert model.pruner is not None
        scorers = [stage.scorer for stage in model.pruner.stages]
        masks = [self.mask_loss(output, scorer, batch) for output, scorer in zip(outputs, scorers, strict=True)]
        loss = torch.stack(masks).sum()
        target = evidence_mask(outputs[0].tokens, batch.boxes)
        tokens, factor = outputs[-1].tokens, self.factor
        # Every stage scores the unpruned prompt here; a token is kept if all stages keep it.
        scores = [output.scores.detach().float() for output in outputs]
        soft = mean_retention(product([(factor * each).sigmoid() for each in scores]), tokens, batch.weight)
        hard = mean_retention(product([(each > 0).float() for each in scores]), tokens, batch.weight)
        if not batch.blank:
            self._ending.add(model.pruner, soft, hard, None, self.progress)
        logs = {
            "mask": loss, "evidence": target.sum() / max(1, len(target)), "retention": soft, "hard_retention": hard,
            "soft_hard_gap": (soft - hard).abs(),
        }  # fmt: skip
        answers = [
            answer_loss(output.answer_logits, batch.answer_ids, batch.answer_mask, batch.weight)
            for output in outputs
            if output.answer_logits is not None
        ]
        if answers:
            logs["answer"] = torch.stack(answers).sum()
            loss = loss + self.answer_weight * logs["answer"]
        return StepResult(loss, {name: value.detach() for name, value in logs.items()})

    @property
    def factor(self) -> float:
        """The factor on the logits at this point of the training."""
        return sharpening(self.progress, 0.5, self.sharpness)

    def mask_loss(self, output: StageOutput, scorer: object, batch: Batch) -> Tensor:
        """Dice and BCE of one stage, summed over its output heads; a scalar."""
        tokens = output.tokens
        rows = output.scores[None]
        if getattr(scorer, "deep_supervision", False):
            rows = scorer.forward_rows(tokens)  # type: ignore[attr-defined]
        boxes = batch.boxes
        target = evidence_mask(tokens, boxes)
        annotated = torch.tensor([float(b is not None) for b in boxes], device=rows.device)
        weight = annotated * batch.weight.to(rows.device)
        losses = [
            mask_loss(row, target, tokens.sample, tokens.num_samples, self.dice_weight, self.bce_weight, weight)
            for row in self.factor * rows
        ]
        return torch.stack(losses).sum()
