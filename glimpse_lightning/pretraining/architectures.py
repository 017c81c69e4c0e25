"""Architectures that can be pretrained: how drawn pages and positions reach each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glimpse_lightning.pretraining.pages import TOKEN
from glimpse_lightning.runtime.errors import GlimpseError

PATCH = 14
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255


class Architecture(ABC):
    """How pages reach a model. Every visual token covers 28 x 28 pixels."""

    @abstractmethod
    def pixels(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Arguments of the model's ``get_image_features`` for B images, uint8 [H, W, 3] of one size."""

    @abstractmethod
    def positions(self, side: int) -> np.ndarray:
        """Positions of an image's tokens and of the token that ends it, less that of the image's start: [R, N + 1].

        Args:
            side: visual tokens on a side of the image. R is the number of positions that a token has.
        """


class QwenVL(Architecture):
    """Qwen2.5-VL: patches of 14 pixels, merged by four, and a position each for time, row and column."""

    def pixels(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        grid = [[1, image.shape[0] // PATCH, image.shape[1] // PATCH] for image in images]
        pixels = torch.from_numpy(np.concatenate([patches(image) for image in images]))
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grid)}

    def positions(self, side: int) -> np.ndarray:
        cells = np.arange(side * side)
        image = np.stack([np.zeros_like(cells), cells // side, cells % side])
        return np.concatenate([image, [[side]] * 3], axis=1)


class Llava(Architecture):
    """LLaVA-1.5: a patch for each visual token, and one position a token."""

    def pixels(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        return {"pixel_values": torch.from_numpy(np.stack([normalised(image).transpose(2, 0, 1) for image in images]))}

    def positions(self, side: int) -> np.ndarray:
        return np.arange(side * side + 1)[None]


ARCHITECTURES: dict[str, Architecture] = {"qwen2_5_vl": QwenVL(), "llava": Llava()}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a configuration's ``model_type``.

    Raises:
        GlimpseError: if it cannot be pretrained.
    """
    if model_type not in ARCHITECTURES:
        raise GlimpseError(
            f"Expected a model of type {' or '.join(ARCHITECTURES)}, which can be pretrained, but got {model_type!r}."
        )
    return ARCHITECTURES[model_type]


def normalised(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 of CLIP's mean and standard deviation."""
    return (image.astype(np.float32) - _MEAN) / _STD


def patches(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [P, 1176], as the Qwen2-VL image processor does without resizing."""
    height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
    merged = TOKEN // PATCH
    split = normalised(image).reshape(height // merged, merged, PATCH, width // merged, merged, PATCH, 3)
    split = split.transpose(0, 3, 1, 4, 6, 2, 5)
    twice = np.stack([split, split], axis=5)  # a still image is two equal frames
    return np.ascontiguousarray(twice.reshape(height * width, -1))
