"""A batch of questions, ready for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from glimpse_lightning.data.boxes import Box
from glimpse_lightning.data.sample import BLANK, Sample


@dataclass
class Batch:
    """What a collator makes of samples. Lightning moves its tensors to the device.

    Attributes:
        inputs: what the processor made of the prompts (``input_ids [B, N]`` padded on the left, ``attention_mask``,
            ``pixel_values``, ``image_grid_thw``, ...); exactly the keyword arguments of ``PrunedVLM.prefill``.
        answer_ids: ``[B, A]`` tokens of the first reference answer, up to and including one that generation stops at;
            padded on the right.
        answer_mask: ``[B, A]`` 1 at answer tokens, 0 at padding.
        key: ``[B]`` int64, ``Sample.key`` of each sample.
        weight: ``[B]`` 1.0, or 0.0 for a sample that only pads an uneven split and counts nowhere.
        samples: where the tensors come from.
        prompt: ``inputs`` as the backbone embedded them, where several models share that; then ``inputs`` may be empty.
        vision_output: cached output of the frozen vision tower, reused when prompts are embedded again.
        shared: how the prompts' (or their copies') common prefixes are run only once: a ``SharedPrefix``, if any.

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

    @property
    def questions(self) -> list[str]:
        """The raw question of each sample."""
        return [sample.question for sample in self.samples]

    @property
    def boxes(self) -> list[list[list[Box]] | None]:
        """The evidence boxes of each sample, by image; ``None`` where it has no annotation."""
        return [sample.boxes for sample in self.samples]

    @property
    def blank(self) -> bool:
        """Whether it holds nothing but the stand-in for samples that could not be used."""
        return any(sample is BLANK for sample in self.samples)
