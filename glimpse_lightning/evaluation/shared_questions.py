"""Work that several models over one backbone share when they answer the same questions in one process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisionTap
from glimpse_lightning.data.batch import Batch

if TYPE_CHECKING:
    from glimpse_lightning.engine.prompt import Prompt


@dataclass(frozen=True)
class FullAnswer:
    """The full model's answer to one question.

    Attributes:
        text: text of the answer.
        along: tokens of the reference answer, or, without any, of the full model's own answer.
        ids, log_probs: the most probable next tokens at each of these, ``[A, k]``.
    """

    text: str
    along: list[int]
    ids: Tensor
    log_probs: Tensor

    def kl(self, pruned: Tensor) -> float:
        """Mean over the answer of KL(full || pruned) in nats, from the pruned log-probabilities ``[>= A, vocab]``.

        Tokens beyond the ``k`` most probable ones count as one token, so with a large vocabulary this is a lower bound.
        """
        student = pruned[: len(self.ids)].cpu().gather(-1, self.ids.long())
        kl = (self.log_probs.exp() * (self.log_probs - student)).sum(-1)
        rest, student_rest = ((1 - logs.exp().sum(-1)).clamp(min=1e-9) for logs in (self.log_probs, student))
        return float((kl + rest * (rest.log() - student_rest.log())).mean().clamp(min=0))


@dataclass
class SharedQuestions:
    """The questions of one split: rendered and embedded once, and answered once by the full model.

    The first model stores its batches here. If they do not fit into memory, later models render and embed the questions
    again, and share only the full model's answers.

    Attributes:
        taps: requests of all models to the vision tower.
        limit: bytes of main memory that embedded questions may take.
        answers: answers of the full model, by ``Sample.content()``.
        batches: embedded questions in main memory.
        complete: whether ``batches`` hold all questions.
        skipped: messages about samples that were left out.
    """

    taps: tuple[VisionTap, ...] = ()
    limit: float = 4e9
    answers: dict[str, FullAnswer] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    complete: bool = False
    skipped: list[str] = field(default_factory=list)
    used: int = 0

    def start(self) -> None:
        """Mark the start of a model's pass over all questions."""
        if not self.complete:
            self.batches, self.used = [], 0

    def add(self, batch: Batch, prompt: Prompt) -> None:
        """Store a batch and its embedded prompts, with the values of ``taps``."""
        prompt = replace(prompt, vision={tap: prompt.vision[tap] for tap in self.taps})
        self.used += prompt.nbytes + sum(_pixels(batch))
        if self.used > self.limit:
            self.batches = []
            return
        cpu = torch.device("cpu")
        small = {name: getattr(batch, name).to(cpu) for name in ("answer_ids", "answer_mask", "key", "weight")}
        self.batches.append(replace(batch, inputs={}, prompt=prompt.to(cpu), **small))

    def finish(self) -> None:
        """Mark the end of a model's pass over all questions."""
        self.complete = bool(self.batches) and self.used <= self.limit


def _pixels(batch: Batch) -> Iterable[int]:
    """Bytes of each image; images are stored for overlays."""
    return (3 * image.width * image.height for sample in batch.samples for image in sample.images)
