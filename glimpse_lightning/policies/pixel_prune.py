"""PixelPrune's rule: what can be predicted from the pixels next to it goes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisionPixels, VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires


class PixelPrune(Policy):
    """Drops tokens whose pixels are those of a neighbour (PixelPrune, arXiv 2604.00886); reads no scores but -inf.

    In raster order each token is compared with a prediction: the token above, where the one above to the left is like
    the one to the left and unlike the one above; else the one to the left. In the first column it is the token above,
    in the first row the one to the left; the first token of an image is kept. A token within ``threshold`` of its
    prediction goes, and is the prediction to its own neighbours. "Like" is within the threshold, too. Each frame of a
    video is an image of its own.

    Departures: the authors drop patches before the vision tower, which then sees and costs less; here the tower sees
    the whole image. Of their three orders this is the default one (``pred_2d``).

    Args:
        threshold: largest distance of equal tokens, in the processor's normalised pixel values.
        metric: distance of two tokens: the largest absolute difference of their pixels (``max``), its mean (``mae``),
            or its root mean square (``rmse``).

    Raises:
        GlimpseError: in a run, where an earlier stage has dropped neighbours.
    """

    def __init__(self, threshold: float = 0.0, metric: Literal["max", "mae", "rmse"] = "max") -> None:
        if threshold < 0:
            raise ValueError(f"Expected `threshold` to be a distance of at least 0, but got {threshold}.")
        check_choice("metric", metric, ("max", "mae", "rmse"))
        self.threshold = threshold
        self.metric = metric

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(VisionPixels(),))

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        if len(tokens) != int(tokens.grid.prod(-1).sum()):
            raise GlimpseError(
                "PixelPrune compares each token with its neighbours, but an earlier stage has dropped some of them. "
                "Let it prune first."
            )
        pixels = tokens.vision[VisionPixels()].float()
        keep = torch.ones_like(scores, dtype=torch.bool)
        start = 0
        for frames, rows, columns in tokens.grid.tolist():
            size = frames * rows * columns
            image = pixels[start : start + size].reshape(frames, rows, columns, -1)
            keep[start : start + size] = self._unlike(image).flatten()
            start += size
        return keep & (scores > -torch.inf)

    def _unlike(self, image: Tensor) -> Tensor:
        """Boolean ``[T, h, w]``: tokens that differ from their prediction, of frames ``[T, h, w, P]``.

        Predictions are made of predictions, so a token waits for those above and to the left: all tokens of one
        anti-diagonal are done at once.
        """
        frames, rows, columns, _ = image.shape
        seen = image.clone()  # as its neighbours see a token: as it is, or as predicted
        keep = torch.zeros(frames, rows, columns, dtype=torch.bool, device=image.device)
        keep[:, 0, 0] = True
        for diagonal in range(1, rows + columns - 1):
            first, end = max(0, diagonal - columns + 1), min(rows, diagonal + 1)
            row = torch.arange(first, end, device=image.device)
            column = diagonal - row
            left, up = seen[:, row, (column - 1).clamp(min=0)], seen[:, (row - 1).clamp(min=0), column]
            corner = seen[:, (row - 1).clamp(min=0), (column - 1).clamp(min=0)]
            above = (self._like(corner, left) & ~self._like(corner, up)) | (column == 0)
            predicted = torch.where((above & (row > 0))[..., None], up, left)
            unlike = ~self._like(image[:, row, column], predicted)
            keep[:, row, column] = unlike
            seen[:, row, column] = torch.where(unlike[..., None], image[:, row, column], predicted)
        return keep

    def _like(self, one: Tensor, other: Tensor) -> Tensor:
        difference = (one - other).abs()
        if self.metric == "max":
            distance = difference.amax(-1)
        else:
            distance = difference.mean(-1) if self.metric == "mae" else difference.square().mean(-1).sqrt()
        return distance <= self.threshold
