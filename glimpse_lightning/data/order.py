"""In which order samples are visited: deterministic, resumable, and the same number of steps on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class TrainOrder(DistributedSampler[Any]):
    """An endless walk through one shuffled permutation after another, from where training stands.

    Where a batch lies in the walk depends on how many batches came before it and on nothing else, so a resumed run
    sees the batches that an uninterrupted one would have seen. (A ``DistributedSampler``, so that Lightning leaves it
    in place.)

    Args:
        dataset: what is walked through.
        batch_size: samples a batch and rank.
        seed: of the permutations.
        num_replicas, rank: of the distributed run.
        batches_done: asked when an epoch starts: how many batches each rank has had so far.
        group: so many samples in a row of the dataset stay together; the groups are shuffled.
        repeats: how often each batch comes.
        block: so many batches follow each other before they come again; those of one step that accumulates gradients.
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
    """Every sample once, in order, dealt out to the ranks in turn.

    Where the samples do not divide evenly, ranks that run out get sample 0 again as padding, written as the index
    ``-1``: unequal steps would deadlock sharded ranks.
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
