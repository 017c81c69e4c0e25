"""Pictures of kept tokens: these are bright, dropped ones dimmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from glimpse_lightning.data.sample import Box
from glimpse_lightning.runtime.errors import GlimpseError

DIMMED = 0.25
BOX_COLOUR, KEPT_COLOUR, UNSEEN_COLOUR = (255, 60, 60), (90, 220, 120), (60, 60, 72)
MIN_WIDTH, MAX_WIDTH, MAX_HEIGHT = 448, 1024, 2048


class Kept(Protocol):
    """What was kept of a batch, as a ``PrefillOutput`` has it."""

    def items(self, stages: int | None = None) -> list[dict[str, Any]]:
        """Each image, or part of one, and its tokens kept by the first ``stages``, or all of them."""


def overlay(
    image: Image.Image,
    out: Kept,
    sample: int = 0,
    number: int = 0,
    boxes: Sequence[Box] = (),
    stages: int | None = None,
) -> Image.Image:
    """An image of a prompt with the cells of dropped tokens dimmed, and kept ones framed.

    Args:
        image: the image, as it was given to the processor.
        out: a prefill of the prompt.
        sample: number of the prompt in its batch.
        number: number of the image in its prompt.
        boxes: boxes to draw, normalised to [0, 1], such as those of the evidence.
        stages: number of the pruner's stages after which tokens are shown; ``None``: all of them.

    Raises:
        GlimpseError: where the batch has no such image.

    Examples:
        >>> sample = gl.GlyphVQA("test")[0]
        >>> stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.25))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> out = model.prefill(**model.backbone.collate([sample]).inputs)
        >>> gl.overlay(sample.images[0], out).size
        (448, 448)
    """
    items = [item for item in out.items(stages) if item["sample"] == sample and item["image"] == number]
    if not items:
        raise GlimpseError(f"Expected an image {number} in prompt {sample} of the batch, but it has none there.")
    return draw(image, items, boxes)


def draw(image: Image.Image, items: Sequence[Mapping[str, Any]], boxes: Sequence[Box] = ()) -> Image.Image:
    """``image`` with the cells of dropped tokens dimmed, parts that the model did not see blacked out, and evidence
    boxes in red.

    Each item, as from ``PrefillOutput.items``, lies over the ``region`` of the image that it shows. Where several show
    the same part (tiles and a thumbnail, frames), it is bright if any of them keeps its cell. An item whose region is
    not known is left out.

    Args:
        image: as in the sample, of any size.
        items: for each item of the image its ``grid`` (t, h, w), mask of ``kept`` tokens ``[t * h * w]`` and
            ``region`` (x1, y1, x2, y2).
        boxes: evidence boxes, normalised.
    """
    scale = min(min(max(image.width, MIN_WIDTH), MAX_WIDTH) / image.width, MAX_HEIGHT / image.height)
    image = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    dim = Image.blend(Image.new("RGB", image.size, (128, 128, 128)), image, DIMMED).point(lambda value: value * 0.7)
    kept, seen = Image.new("L", image.size), Image.new("L", image.size)
    for item in items:
        if math.isnan(item["region"][0]):
            continue
        cells = item["kept"].reshape(item["grid"]).any(0).numpy().astype(np.uint8) * 255
        _brighten(kept, cells, item["region"])
        _brighten(seen, np.full_like(cells, 255), item["region"])
    shown = Image.composite(image, dim, kept)
    shown.paste(UNSEEN_COLOUR, mask=ImageChops.invert(seen))
    shown.paste(KEPT_COLOUR, mask=_border(kept))
    draw = ImageDraw.Draw(shown)
    for x1, y1, x2, y2 in boxes:
        draw.rectangle((x1 * shown.width, y1 * shown.height, x2 * shown.width, y2 * shown.height), None, BOX_COLOUR, 2)
    return shown


def _brighten(mask: Image.Image, cells: np.ndarray, region: Sequence[float]) -> None:
    """Lay ``cells [h, w]`` over ``region`` of a mask, keeping the brighter value of each pixel."""
    left, right = (round(x * mask.width) for x in region[::2])
    top, bottom = (round(y * mask.height) for y in region[1::2])
    size = (max(right - left, 1), max(bottom - top, 1))
    layer = Image.new("L", mask.size)
    layer.paste(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST), (left, top))
    mask.paste(ImageChops.lighter(mask, layer))


def _border(mask: Image.Image) -> Image.Image:
    """Pixels of the bright area of a mask that touch its outside, or the edge."""
    inner = ImageOps.expand(mask, 1).filter(ImageFilter.MinFilter(3)).crop((1, 1, mask.width + 1, mask.height + 1))
    return ImageChops.difference(mask, inner)
