"""Packing of many questions about one page into one sequence.

Every question with its answer attends to the image and to itself only, at the positions that it would have alone.
A packed sequence therefore equals separate sequences at a fraction of the cost.

Shapes: B pages, L places, N visual tokens a page (the same for all), R positions of a token, W visual words, and Q
questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimpse_lightning.data.glyph_vqa.words import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    vocabulary,
)
from glimpse_lightning.pretraining.architectures import Architecture, QwenVL
from glimpse_lightning.pretraining.pages import TOKEN, Pages, tokens_of

IDS = {token: number for number, token in enumerate(vocabulary())}
IGNORE = -100


@dataclass
class PackedBatch:
    """``visual_words``: 1 shown, 0 not shown, -1 shown in part; ``targets``: the next token, or IGNORE."""

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [R, B, L], or [B, L] where a token has one position
    mask: Tensor  # bool [B, 1, L, L], True where a position is seen
    targets: Tensor  # [B, L]
    question: Tensor  # [B, L], number of the question within the batch, -1 elsewhere
    families: list[str]  # [Q], by number of the question
    visual_words: Tensor  # int8 [B, N, W]
    pixels: dict[str, Tensor] = field(default_factory=dict)  # arguments of the model's ``get_image_features``
    settings: dict = field(default_factory=dict)  # settings of the training stage


@dataclass
class _Text:
    """Token ids of a question with its answer and end; number of prompt tokens; evidence tokens of the image."""

    tokens: list[int]
    prompt: int
    evidence: np.ndarray  # bool [N]


def _text(pages: Pages[Any], page: Any, family: str, rng: Random, suffix: float, side: int) -> _Text:
    question = pages.ask(page, family, rng)
    # Without the suffix the key of the question is the last token of the prompt: much easier to learn first.
    prompt = question.text.split() + ([ASSISTANT] if rng.random() < suffix else [])
    evidence = np.zeros((side, side), bool)
    for box in question.boxes:
        evidence |= np.logical_or(*tokens_of(box, side))
    ids = [IDS[token] for token in (*prompt, *question.answer.split(), EOS)]
    return _Text(ids, len(prompt), evidence.reshape(-1))


def _hidden(rng: Random, texts: list[list[_Text]], segment_BL: Tensor, share: float) -> Tensor:
    """bool [B, L, L], True where a question's row must not see a visual token that it does not need."""
    hidden = torch.zeros(*segment_BL.shape, segment_BL.shape[1], dtype=torch.bool)
    for b, text in enumerate(texts):
        for q, part in enumerate(text):
            if rng.random() < share:
                chance = np.random.default_rng(rng.getrandbits(32)).random(len(part.evidence))
                missing = ~part.evidence & (chance < rng.random() ** 0.5)
                hidden[b, segment_BL[b] == q, 2 : 2 + len(missing)] = torch.from_numpy(missing)
    return hidden


def pack(
    pages: Pages[Any],
    rng: Random,
    images: int,
    questions: int,
    image_size: int = 448,
    suffix: float = 1.0,
    families: Mapping[str, float] | None = None,
    pixels: bool = True,
    hide: float = 0.0,
    architecture: Architecture = QwenVL(),
) -> PackedBatch:
    """A batch of ``images`` fresh pages with ``questions`` questions each.

    Args:
        pages: source of the pages.
        rng: generator of all random choices.
        images: number of pages.
        questions: number of questions about each page.
        image_size: width and height in pixels, a multiple of 28.
        suffix: share of prompts that end as in the chat template instead of with their last word.
        families: weight of each family in the mix; default: equal weights.
        pixels: whether the pages are drawn; if not, the batch can be used with ideal visual tokens only.
        hide: share of questions for which a random share of the visual tokens outside the evidence is hidden, so that
            the model does not learn to depend on the amount of background.
        architecture: architecture of the model that reads the batch.
    """
    weights = families or dict.fromkeys(pages.families, 1.0)
    side = image_size // TOKEN
    count = side * side
    prefix = [IDS[BOS], IDS[VISION_START], *[IDS[IMAGE_PAD]] * count, IDS[VISION_END]]
    start = 2 + architecture.positions(side)
    prefix_positions = np.concatenate([[[0, 1]] * len(start), start], axis=1)
    texts, words, drawings, asked = [], [], [], []
    for _ in range(images):
        page = pages.make(rng, image_size)
        picked = rng.choices(list(weights), list(weights.values()), k=questions)
        texts.append([_text(pages, page, family, rng, suffix, side) for family in picked])
        asked.extend(picked)
        words.append(pages.words_by_token(page, image_size))
        if pixels:
            drawings.append(np.asarray(pages.draw(page, rng)))
    length = len(prefix) + max(sum(len(part.tokens) for part in text) for text in texts)
    input_ids = np.zeros((images, length), np.int64)
    positions = np.zeros((len(start), images, length), np.int64)
    targets, number = np.full((images, length), IGNORE), np.full((images, length), -1)
    segment = np.full((images, length), -2)  # -2: padding, -1: image, else the question
    for b, text in enumerate(texts):
        at = len(prefix)
        input_ids[b, :at], positions[:, b, :at], segment[b, :at] = prefix, prefix_positions, -1
        for q, part in enumerate(text):
            end, answer = at + len(part.tokens), at + part.prompt - 1
            input_ids[b, at:end], segment[b, at:end] = part.tokens, q
            positions[:, b, at:end] = start.max() + 1 + np.arange(len(part.tokens))
            targets[b, answer : end - 1] = part.tokens[part.prompt :]
            number[b, answer : end - 1] = b * questions + q
            at = end
    seg = torch.from_numpy(segment)
    seen = (seg[:, None, :] == -1) | (seg[:, None, :] == seg[:, :, None])
    if hide:
        seen &= ~_hidden(rng, texts, seg, hide)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(positions if len(start) > 1 else positions[0]),
        mask=(seen & causal)[:, None],
        targets=torch.from_numpy(targets),
        question=torch.from_numpy(number),
        families=asked,
        visual_words=torch.from_numpy(np.stack(words)),
        pixels=architecture.pixels(drawings) if pixels else {},
    )
