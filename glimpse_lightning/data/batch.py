"""A batch of questions, ready for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from glimpse_lightning.data.boxes import Box
from glimpse_lightning.data.sample import BLANK, Sample


@dataclass
class Batch:
    """Samples as tensors, made by a collator. Lightning moves the tensors to the device.

    Attributes:
        inputs: outputs of the processor for the prompts (``input_ids [B, N]`` padded on the left, ``attention_mask``,
            ``pixel_values``, ``image_grid_thw``, ...); they are the keyword arguments of ``PrunedVLM.prefill``.
        answer_ids: ``[B, A]`` tokens of the first reference answer, up to and including an end token; padded on the
            right.
        answer_mask: ``[B, A]`` mask: 1 at answer tokens, 0 at padding.
        key: ``[B]`` int64, ``Sample.key`` of each sample.
        weight: ``[B]`` weights: 1.0, or 0.0 for a sample that only pads an uneven split and is left out of all results.
        samples: samples that the tensors were made from.
        prompt: embedded ``inputs``, where several models share them; ``inputs`` may then be empty.
        vision_output: cached output of the frozen vision tower, reused when prompts are embedded again.
        shared: ``SharedPrefix`` that runs common prefixes of the prompts (or of their copies) once; ``None``: each
            prompt runs on its own.
        visual_tokens: number of placeholders of visual tokens in all prompts, counted where a module collates the
            batch; 0 for others.

    Examples:
        >>> batch = gl.load_backbone("glimpse-tiny").collate([gl.GlyphVQA("test")[i] for i in range(2)])
        >>> len(batch.samples), batch.answer_ids.shape
        (2, torch.Size([2, 3]))
    """

    inputs: dict[str, Tensor]
    answer_ids: Tensor
    answer_mask: Tensor
    key: Tensor
    weight: Tensor
    samples: list[Sample]
    prompt: Any = None
    vision_output: Any = None
    shared: Any = None
    visual_tokens: int = 0

    @property
    def questions(self) -> list[str]:
        """The raw question of each sample."""
        return [sample.question for sample in self.samples]

    @property
    def boxes(self) -> list[list[list[Box]] | None]:
        """The evidence boxes of each sample, by image; ``None`` for a sample without annotation."""
        return [sample.boxes for sample in self.samples]

    @property
    def blank(self) -> bool:
        """Whether the batch consists of the stand-in for unusable samples alone."""
        return any(sample is BLANK for sample in self.samples)
