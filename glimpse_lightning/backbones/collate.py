"""From samples to a batch: prompts and images through the processor, answers to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

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
