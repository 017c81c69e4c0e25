"""The resolution cut: images shrunk before the processor, so that they have fewer visual tokens from the start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from PIL import Image

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class ResolutionCut:
    """Smaller images, in place of a pruner. Exactly one of the two arguments is given.

    Sides are rounded down to multiples of a visual token's side (``Backbone.pixel_multiple``), as Qwen-VL's processor
    does for its ``max_pixels``, so that the budget is never exceeded. At least one such multiple is left.

    Args:
        ratio: share of the pixels that the processor would take of an image.
        max_pixels: largest image, in pixels.

    Examples:
        >>> from PIL import Image
        >>> backbone = gl.load_backbone("glimpse-tiny")
        >>> gl.ResolutionCut(ratio=0.25).shrunk(Image.new("RGB", (448, 448)), backbone).size
        (224, 224)
    """

    ratio: float | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.max_pixels is None):
            raise ValueError(
                f"Expected exactly one of `ratio` and `max_pixels`, but got {self.ratio} and {self.max_pixels}."
            )
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"Expected `ratio` to be above 0 and at most 1, but got {self.ratio}.")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"Expected `max_pixels` to be at least 1, but got {self.max_pixels}.")

    def applied(self, batch: Batch, backbone: Backbone) -> Batch:
        """The same questions about shrunk images; ``batch`` itself where all of them are small enough."""
        samples = [replace(s, images=[self.shrunk(image, backbone) for image in s.images]) for s in batch.samples]
        pairs = zip(batch.samples, samples, strict=True)
        if all(old is new for one, other in pairs for old, new in zip(one.images, other.images, strict=True)):
            return batch
        return replace(batch, inputs=backbone.collate(samples).inputs, samples=samples, prompt=None)

    def shrunk(self, image: Image.Image, backbone: Backbone) -> Image.Image:
        """``image``, or a smaller copy of the same shape up to rounding."""
        pixels, most = image.width * image.height, backbone.max_pixels
        limit = self.max_pixels
        if limit is None:
            assert self.ratio is not None
            limit = math.floor(self.ratio * (pixels if most is None else min(pixels, most)))
        if pixels <= limit:
            return image
        scale, unit = math.sqrt(limit / pixels), backbone.pixel_multiple
        sides = (max(1, math.floor(side * scale / unit + 1e-9)) * unit for side in image.size)
        width, height = sides
        return image.resize((width, height), Image.Resampling.BICUBIC)


def check_fewer(kept: int, total: int, backbone: Backbone) -> None:
    """Raise where ``kept`` tokens of shrunk images are no fewer than the ``total`` of whole ones.

    A processor that is known to keep sizes may still enlarge very small images to its least size.
    """
    if kept >= total and backbone.max_pixels is None:
        raise GlimpseError(
            f"The processor of {backbone.name!r} makes {kept} visual tokens of shrunk images, {total} of whole ones: "
            "it brings images of any size to sizes of its own, so a resolution cut saves nothing. Cut on a backbone "
            "whose processor keeps small images small (Qwen-VL, glimpse-tiny), or pool tokens (recipe methods/pooling)."
        )
