"""Base class of metrics that are means over questions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from glimpse_lightning.metrics.base import BaseMetric

UNITS = 2**32
"""Sums are stored as whole multiples of 1 / UNITS."""


class RunningMean(BaseMetric):
    """Mean over questions of one figure, or of several named ones.

    The sum is a whole number of units of ``2**-32``. Adding whole numbers is exact. The mean is therefore the same to
    the last digit for every order of the questions and every split into batches and ranks. A value is rounded by at
    most ``2**-33``, a thousandth of the resolution of fp32 for a score in [0, 1]. The sum of values may reach
    ``2**31``. Values that are not finite make the mean NaN.

    Attributes:
        figures: names of the figures, which :meth:`compute` returns as a dictionary; empty: it returns the single mean.
    """

    figures: ClassVar[tuple[str, ...]] = ()
    total: Tensor
    undefined: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(len(self.figures) or (), dtype=torch.int64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("undefined", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add the values ``[S]``, or ``[S, figures]``, of ``S`` questions."""
        values = values.to(self.device, torch.float64)
        finite = values.isfinite()
        self.total += (values.where(finite, 0) * UNITS).round().long().sum(0)
        self.undefined += (~finite).sum(0)
        self.count += len(values)

    def mean(self) -> Tensor:
        """Mean, fp32, of each figure; 0 before the first question."""
        mean = self.total.double() / UNITS / self.count.clamp(min=1)
        return mean.where(self.undefined == 0, torch.nan).float()

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Mean, fp32, or ``figures`` with their means; 0 before the first question."""
        return dict(zip(self.figures, self.mean(), strict=True)) if self.figures else self.mean()
