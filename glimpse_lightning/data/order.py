"""Order of samples: deterministic, resumable, and with the same number of steps on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class TrainOrder(DistributedSampler[Any]):
    """An endless sequence of shuffled permutations of the samples, from the position that training has reached.

    The position of a batch depends only on the number of batches before it. A resumed run therefore gets the batches
    that an uninterrupted run would have got. The class is a ``DistributedSampler``, so that Lightning does not replace
    it.

    Args:
        dataset: dataset whose samples are ordered.
        batch_size: samples per batch and rank.
        seed: seed of the permutations.
        num_replicas, rank: number of ranks, and number of this rank.
        batches_done: function that returns the number of batches that each rank has had; called when an epoch starts.
        group: number of consecutive samples that stay together; the groups are shuffled.
        repeats: number of times that each batch is used.
        block: number of consecutive batches that are repeated together: those of one step that accumulates gradients.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        batches_done: Callable[[], int] = lambda: 0,
        group: int = 1,
        repeats: int = 1,
        block: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed)
        self.batch_size = batch_size
        self.batches_done = batches_done
        self.group = group
        self.repeats = repeats
        self.block = block
        self.length = len(dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return max(1, self.length // (self.batch_size * self.num_replicas)) * self.batch_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        width = self.batch_size * self.num_replicas
        first = self.batches_done()
        epoch, order = -1, torch.empty(0)
        for batch in range(first, first + len(self) // self.batch_size):
            visited = batch // (self.block * self.repeats) * self.block + batch % self.block
            start = visited * width + self.rank * self.batch_size
            for place in range(start, start + self.batch_size):
                if place // self.length != epoch:
                    epoch = place // self.length
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    groups = torch.randperm(-(-self.length // self.group), generator=generator)
                    order = (groups[:, None] * self.group + torch.arange(self.group)).flatten()
                    order = order[order < self.length]
                yield int(order[place % self.length])


class EvalOrder(DistributedSampler[Any]):
    """Every sample once, in order, distributed to the ranks in turn.

    If the samples do not divide evenly, the index ``-1`` pads the shorter ranks: sample 0 with weight 0. Unequal
    numbers of steps would deadlock sharded ranks.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int = 1, rank: int = 0, size: int | None = None) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        length = len(dataset)  # type: ignore[arg-type]
        self.length = length if size is None else min(size, length)

    def __len__(self) -> int:
        return -(-self.length // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        for place in range(self.rank, len(self) * self.num_replicas, self.num_replicas):
            yield place if place < self.length else -1
