"""Sliding windows that do not count some of the columns, such as softly dropped ones.

Suffixes: ``B`` samples, ``n`` columns.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def column_numbers(counted_Bn: Tensor) -> Tensor:
    """``[B, n]`` the place of each column among those that ``counted_Bn`` marks; any other has the place that it would
    have if it were one of them.
    """
    return counted_Bn.long().cumsum(-1) + (~counted_Bn).long()


def within_window(counted_Bn: Tensor, window: int) -> Callable[..., Tensor]:
    """A mask function of transformers: true where a row has the column among the last ``window`` counted ones."""
    number = column_numbers(counted_Bn)

    def inside(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return number[batch, column] > number[batch, row] - window

    return inside
