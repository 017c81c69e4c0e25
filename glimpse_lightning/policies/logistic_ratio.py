"""AutoPrune's schedule: how much to keep at each of several layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.segments import rank_in_group
from glimpse_lightning.visual_tokens import VisualTokens


class LogisticRatio(Policy):
    """Keeps the best tokens; how many follows a logistic curve over the decoder's layers (AutoPrune, arXiv 2509.23931).

    ``keep(l) = 0.75 / (1 + exp(k (l - midpoint)))``, ``k = max(0.4 - 0.2 * information, 0)``, times a factor that makes
    the tokens averaged over all layers ``retention`` (what FLOPs follow, but for the attention's quadratic part).

    Departures: ``information``, the mutual information of question and image that makes the curve steeper or flatter
    for each sample, is a constant here; the score is the scorer's. Ratios are never above 1.

    Args:
        stage: which of ``after_layers`` this policy's stage prunes after, from 0.
        after_layers: ``after_layer`` of all stages, rising.
        retention: share of the tokens, averaged over all layers of the decoder.
        midpoint: layer where the curve falls fastest, as a share of the decoder's depth.
        information: I of the formula.
        per, min_tokens: as in ``KeepRatio``.
    """

    def __init__(
        self,
        stage: int,
        after_layers: Sequence[int],
        retention: float,
        midpoint: float = 0.3,
        information: float = 0.5,
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
    ) -> None:
        check_fraction("retention", retention)
        check_fraction("midpoint", midpoint)
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        if list(after_layers) != sorted(set(after_layers)) or not 0 <= stage < len(after_layers):
            raise ValueError(
                "Expected `after_layers` to rise and `stage` to be an index into it, but got "
                f"{list(after_layers)} and {stage}."
            )
        self.stage = stage
        self.after_layers = list(after_layers)
        self.retention = retention
        self.midpoint = midpoint
        self.information = information
        self.per = per
        self.min_tokens = min_tokens

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        ratio = self.ratios(tokens.facts.num_layers)[self.stage]
        count = (ratio * total.double() + 1e-9).floor().clamp(min=self.min_tokens)
        return (rank_in_group(scores, group, len(total)) < count[group]) & (scores > -torch.inf)

    def ratios(self, num_layers: int) -> list[float]:
        """The share that each stage keeps, of the tokens before any pruning, in a decoder of ``num_layers`` layers.

        Raises:
            GlimpseError: where the layers before the first stage alone are more than ``retention``.
        """
        steepness = max(0.4 - 0.2 * self.information, 0.0)
        curve = [0.75 / (1 + math.exp(steepness * (layer - self.midpoint * num_layers))) for layer in self.after_layers]
        ends = [*self.after_layers[1:], num_layers - 1]
        spans = [end - layer for layer, end in zip(self.after_layers, ends, strict=True)]
        budget = self.retention * num_layers - (self.after_layers[0] + 1)
        if budget < 0:
            least = self.after_layers[0] + 1
            raise GlimpseError(
                f"Expected `retention` to be at least {least / num_layers:.3f}, the share of the {least} unpruned "
                f"layers before the first stage, but got {self.retention}. Raise it, or prune earlier."
            )
        low, high = 0.0, 1 / min(curve)
        for _ in range(60):  # the layer average rises with the factor
            factor = (low + high) / 2
            spent = sum(span * min(1.0, factor * keep) for span, keep in zip(spans, curve, strict=True))
            low, high = (factor, high) if spent < budget else (low, factor)
        return [min(1.0, high * keep) for keep in curve]
