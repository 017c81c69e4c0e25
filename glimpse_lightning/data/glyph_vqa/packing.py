"""Packing of many GlyphVQA questions about one image into one sequence, for the pretraining of glimpse-tiny.

Every question with its answer attends to the image and to itself only, at the mRoPE positions that it would have alone.
A packed sequence therefore equals separate sequences at a fraction of the cost.

Shapes: B images, L positions, N visual tokens an image (the same for all), P patches, W visual words, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from torch import Tensor

from glimpse_lightning.data.glyph_vqa.draw import draw
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, Layout, PixelBox, ask, make_layout
from glimpse_lightning.data.glyph_vqa.words import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE_PAD,
    PLACES,
    VISION_END,
    VISION_START,
    VISUAL_WORDS,
    vocabulary,
)

_IDS = {token: number for number, token in enumerate(vocabulary())}
SHOWN_WORDS = VISUAL_WORDS + PLACES
VISUAL_WORD_IDS = [_IDS[word] for word in SHOWN_WORDS]
_COLUMN = {word: column for column, word in enumerate(SHOWN_WORDS)}
TOKEN = 28  # pixels on a side of a merged visual token
PATCH = 14
IGNORE = -100
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255


@dataclass
class PackedBatch:
    """``visual_words``: 1 shown, 0 not shown, -1 shown in part; ``targets``: the next token, or IGNORE."""

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [3, B, L]
    mask: Tensor  # bool [B, 1, L, L], True where a position is seen
    targets: Tensor  # [B, L]
    question: Tensor  # [B, L], number of the question within the batch, -1 elsewhere
    families: list[str]  # [Q], by number of the question
    visual_words: Tensor  # int8 [B, N, W]
    pixel_values: Tensor | None = None  # [B * P, 3 * 2 * 14 * 14]
    image_grid_thw: Tensor | None = None  # [B, 3]
    settings: dict = field(default_factory=dict)  # settings of the training stage


def patches(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [P, 1176], as the Qwen2-VL image processor does without resizing."""
    height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
    pixels = (image.astype(np.float32) - _MEAN) / _STD
    split = pixels.reshape(height // 2, 2, PATCH, width // 2, 2, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    twice = np.stack([split, split], axis=5)  # a still image is two equal frames
    return np.ascontiguousarray(twice.reshape(height * width, -1))


def _shown(box: PixelBox, lines: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks [lines, columns] of tokens that hold at least 15 % of the box, and of tokens that hold less."""
    x, y = np.arange(columns) * TOKEN, np.arange(lines) * TOKEN
    wide = np.clip(np.minimum(box[2], x + TOKEN) - np.maximum(box[0], x), 0, None)
    high = np.clip(np.minimum(box[3], y + TOKEN) - np.maximum(box[1], y), 0, None)
    part = high[:, None] * wide[None, :] / ((box[2] - box[0]) * (box[3] - box[1]))
    return part >= 0.15, (part > 0.01) & (part < 0.15)


def words_by_token(layout: Layout) -> np.ndarray:
    """Words that each visual token shows: int8 [N, W] of 1, 0 and -1 (a small part, counted neither way)."""
    lines, columns = layout.height // TOKEN, layout.width // TOKEN
    words = np.zeros((lines, columns, len(SHOWN_WORDS)), np.int8)
    pieces: list[tuple[PixelBox, tuple[str, ...]]] = [
        (item.box, (item.colour, item.shape, item.glyph, PLACES[item.number])) for item in layout.objects
    ]
    for row in layout.rows:
        pieces.append((row.label_box, (row.label, PLACES[0])))
        cells = zip(row.glyph_boxes, row.glyphs, PLACES[1:], strict=False)
        pieces.extend((box, (row.label, glyph, place)) for box, glyph, place in cells)
    for box, names in pieces:
        shown, sliver = _shown(box, lines, columns)
        for name in names:
            plane = words[:, :, _COLUMN[name]]
            plane[sliver & (plane == 0)] = -1
            plane[shown] = 1
    return words.reshape(lines * columns, -1)


@dataclass
class _Text:
    """Token ids of a question with its answer and end; number of prompt tokens; evidence tokens of the image."""

    tokens: list[int]
    prompt: int
    evidence: np.ndarray  # bool [N]


def _text(layout: Layout, family: str, rng: Random, suffix: float) -> _Text:
    question = ask(layout, family, rng)
    # Without the suffix the key of the question is the last token of the prompt: much easier to learn first.
    prompt = question.text.split() + ([ASSISTANT] if rng.random() < suffix else [])
    evidence = np.zeros((layout.height // TOKEN, layout.width // TOKEN), bool)
    for box in question.boxes:
        evidence |= np.logical_or(*_shown(box, *evidence.shape))
    ids = [_IDS[token] for token in (*prompt, *question.answer.split(), EOS)]
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
    rng: Random,
    images: int,
    questions: int,
    image_size: int = 448,
    suffix: float = 1.0,
    families: dict[str, float] | None = None,
    pixels: bool = True,
    crowded: bool = False,
    hide: float = 0.0,
) -> PackedBatch:
    """A batch of ``images`` fresh images with ``questions`` questions each.

    Args:
        rng: generator of all random choices.
        images: number of images.
        questions: number of questions about each image.
        image_size: width and height in pixels, a multiple of 112.
        suffix: share of prompts that end as in the chat template instead of with their last word.
        families: weight of each family in the mix; default: equal weights.
        pixels: whether the images are drawn; if not, the batch can be used with oracle visual tokens only.
        crowded: whether images hold more objects than those of the benchmark, for more training targets per image.
        hide: share of questions for which a random share of the visual tokens outside the evidence is hidden, so that
            the model does not learn to depend on the amount of background.
    """
    weights = families or dict.fromkeys(FAMILIES, 1.0)
    side = image_size // TOKEN
    count = side * side
    prefix = [_IDS[BOS], _IDS[VISION_START], *[_IDS[IMAGE_PAD]] * count, _IDS[VISION_END]]
    rows = np.arange(count) // side
    start = np.stack([np.full(count, 2), 2 + rows, 2 + np.arange(count) % side])
    prefix_positions = np.concatenate([[[0, 1]] * 3, start, [[2 + side]] * 3], axis=1)
    texts, words, drawings, asked = [], [], [], []
    for _ in range(images):
        layout = make_layout(rng, image_size, image_size, crowded)
        picked = rng.choices(list(weights), list(weights.values()), k=questions)
        texts.append([_text(layout, family, rng, suffix) for family in picked])
        asked.extend(picked)
        words.append(words_by_token(layout))
        if pixels:
            drawings.append(patches(np.asarray(draw(layout, rng))))
    length = len(prefix) + max(sum(len(part.tokens) for part in text) for text in texts)
    input_ids = np.zeros((images, length), np.int64)
    positions = np.zeros((3, images, length), np.int64)
    targets, number = np.full((images, length), IGNORE), np.full((images, length), -1)
    segment = np.full((images, length), -2)  # -2: padding, -1: image, else the question
    for b, text in enumerate(texts):
        at = len(prefix)
        input_ids[b, :at], positions[:, b, :at], segment[b, :at] = prefix, prefix_positions, -1
        for q, part in enumerate(text):
            end, answer = at + len(part.tokens), at + part.prompt - 1
            input_ids[b, at:end], segment[b, at:end] = part.tokens, q
            positions[:, b, at:end] = 3 + side + np.arange(len(part.tokens))
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
        position_ids=torch.from_numpy(positions),
        mask=(seen & causal)[:, None],
        targets=torch.from_numpy(targets),
        question=torch.from_numpy(number),
        families=asked,
        visual_words=torch.from_numpy(np.stack(words)),
        pixel_values=torch.from_numpy(np.concatenate(drawings)) if pixels else None,
        image_grid_thw=torch.tensor([[1, image_size // PATCH, image_size // PATCH]] * images) if pixels else None,
    )
