"""Supervised fine-tuning of the pruned model, to compare reinforcement learning with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.objectives.base import StepResult
from glimpse_lightning.objectives.losses import answer_loss
from glimpse_lightning.objectives.rollouts import mean_known, retention_by_prompt
from glimpse_lightning.objectives.trained_parts import AnswerObjective

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM


class Supervised(AnswerObjective):
    """Cross entropy of the reference answer after the pruned prompt; trains the language model, the pruner is frozen.

    Args:
        lora: adapters that are trained in place of the language model's own weights; by default these are trained.
    """

    needs = ("answers",)

    def __init__(self, lora: LoRA | None = None) -> None:
        super().__init__(("language_model",), lora)

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs ``hard_retention``."""
        batch = self.seen(model, batch)
        out = model.replay(batch, batch.answer_ids, batch.answer_mask)
        loss = answer_loss(out.logits, batch.answer_ids, batch.answer_mask, batch.weight)
        return StepResult(loss, {"hard_retention": mean_known(retention_by_prompt(out.prefill, len(batch.samples)))})
