"""From samples to a batch: chat template, processor, answer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample


def collate_samples(samples: Sequence[Sample], processor: Any, tokenizer: Any, end_token_id: int) -> Batch:
    """Run ``samples`` through the chat template and ``processor``; prompts padded left, answers padded right.

    Each image stands before the question, in order, in one user turn. A sample without answers has no answer tokens.
    """
    prompts = []
    for sample in samples:
        content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": sample.question}]
        messages = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # One list per sample: several processors would take a flat list for the images of a single sample.
    images = [list(sample.images) for sample in samples]
    inputs = processor(
        text=prompts, images=images if any(images) else None, padding=True, padding_side="left", return_tensors="pt"
    )
    answer_ids, answer_mask = _answers(samples, tokenizer, end_token_id)
    return Batch(
        inputs=dict(inputs),
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        key=torch.tensor([sample.key for sample in samples]),
        weight=torch.ones(len(samples)),
        samples=list(samples),
    )


def first_copies(images: Sequence[Image]) -> list[int]:
    """For each image, the number of the first one that is the very same object."""
    first: dict[int, int] = {}
    return [first.setdefault(id(image), number) for number, image in enumerate(images)]


def _answers(samples: Sequence[Sample], tokenizer: Any, end_token_id: int) -> tuple[Tensor, Tensor]:
    rows = []
    for sample in samples:
        text = sample.answers[:1]
        rows.append([*tokenizer(text[0], add_special_tokens=False)["input_ids"], end_token_id] if text else [])
    return padded_answers(rows, end_token_id)


def padded_answers(rows: Sequence[Sequence[int]], end_token_id: int) -> tuple[Tensor, Tensor]:
    """``(ids, mask)``, both ``[B, A]``, of rows of answer tokens; at least one column."""
    width = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[end_token_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask
