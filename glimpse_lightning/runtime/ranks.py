"""Values exchanged by the ranks of a distributed run. A single process gets its own value back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def running() -> bool:
    """Whether this process is one of several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of ``value`` over all ranks, entry by entry and without gradient; ``value`` itself if there is only one
    rank.
    """
    if not running():
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on at least one rank. Ranks decide alike by this, so that none waits for the others."""
    if not running():
        return flag
    votes = torch.tensor(int(flag), device=device)
    distributed.all_reduce(votes, distributed.ReduceOp.MAX)
    return bool(votes)


def gathered(values: Sequence[T]) -> list[T]:
    """The values of all ranks, in the order of the ranks."""
    if not running():
        return list(values)
    ranks: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(ranks, list(values))
    return [value for rank in ranks for value in rank]
