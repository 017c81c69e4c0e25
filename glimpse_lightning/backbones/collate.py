"""From samples to a batch: prompts and images through the processor, answers to tokens; and batches out of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.backbones.chat import prompt_inputs, target_ids
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample


def collate_samples(samples: Sequence[Sample], processor: Any, tokenizer: Any, ends: Sequence[int]) -> Batch:
    """Run ``samples`` through the chat template and ``processor``; prompts padded left, answers padded right.

    One user turn holds the images, in order, followed by the question. An answer ends with one of the tokens ``ends``.
    A sample without answers has no answer tokens.
    """
    rows = [target_ids(sample, processor, tokenizer, ends) for sample in samples]
    answer_ids, answer_mask = padded_answers(rows, ends[0])
    return Batch(
        inputs=prompt_inputs(samples, processor),
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        key=torch.tensor([sample.key for sample in samples]),
        weight=torch.ones(len(samples)),
        samples=list(samples),
    )


def first_copies(images: Sequence[Image]) -> list[int]:
    """For each image, the index of the first image that is the same object."""
    first: dict[int, int] = {}
    return [first.setdefault(id(image), number) for number, image in enumerate(images)]


def padded_answers(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, both ``[B, A]``, of rows of answer tokens; at least one column."""
    width = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def merged(prompts: Sequence[Mapping[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """One batch out of processor outputs of several batches, as the processor itself would make it, padded on the left.

    Rows of tokens get columns on their left; ``attention_mask`` and types of tokens are 0 there. Everything else (pixel
    values, grids, masks of pixels) has its images, patches or samples along the first axis, and is filled up with
    zeros along the others.

    Args:
        prompts: processor outputs; those of prompts without images lack what belongs to images.
        padding: id of the padding token.
    """
    found: dict[str, Tensor] = {}
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        parts = [prompt[name] for prompt in prompts if name in prompt]
        if name in ("input_ids", "attention_mask") or name.endswith("token_type_ids"):
            fill = padding if name == "input_ids" else 0
            parts = [F.pad(part, (width - part.shape[1], 0), value=fill) for part in parts]
        else:
            sizes = [max(size) for size in zip(*(part.shape[1:] for part in parts), strict=True)]
            parts = [_filled_up(part, sizes) for part in parts]
        found[name] = torch.cat(parts)
    return found


def _filled_up(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """A tensor with zeros behind its content, of ``sizes`` along all axes but the first."""
    ends = [amount for size, wanted in zip(part.shape[1:], sizes, strict=True) for amount in (wanted - size, 0)]
    return F.pad(part, ends[::-1]) if any(ends) else part
