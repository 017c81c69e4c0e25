"""Base class of metrics that store numbers of every question."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from glimpse_lightning.metrics.base import BaseMetric


class RowMetric(BaseMetric):
    """A metric computed from all questions at once, such as a quantile or a score of question groups.

    Attributes:
        columns: name and type of each number that is stored per question.
    """

    columns: ClassVar[dict[str, torch.dtype]] = {}

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name in self.columns:
            self.add_state(name, [], dist_reduce_fx="cat")

    def add_rows(self, **values: Tensor) -> None:
        """Add questions: ``[S]`` numbers for every column."""
        for name, dtype in self.columns.items():
            getattr(self, name).append(values[name].to(self.device, dtype))

    def column(self, name: str) -> Tensor:
        """``[S]`` the numbers of all questions so far."""
        parts = getattr(self, name)
        if isinstance(parts, list) and not parts:
            return torch.zeros(0, dtype=self.columns[name], device=self.device)
        return dim_zero_cat(parts)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks. A rank without rows contributes empty tensors of the columns' types, because
        torchmetrics would contribute fp32.
        """
        for name in self.columns:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [self.column(name)])
        super().sync(*args, **kwargs)
