"""Metrics over two ranks equal those over one."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glimpse_lightning.metrics import MME, POPE, EvidenceOverlap, ExactMatch, Retention

KEPT, TOTAL = torch.tensor([1, 5, 3, 8, 2]), torch.tensor([10, 10, 10, 10, 20])
PREDICTIONS, REFERENCES = ["a", "b", "c", "d", "e"], [["a"], ["x"], ["c"], ["d"], ["x"]]
EVIDENCE = torch.tensor([True, False, True, True, False])


def figures(chosen: list[int]) -> dict[str, float]:
    """All metrics of the samples in ``chosen``, together with those of the other ranks."""
    retention, match, overlap = Retention(families=("f",)), ExactMatch(), EvidenceOverlap()
    retention.update(KEPT[chosen], TOTAL[chosen], ["f" if i % 2 else "g" for i in chosen])
    match.update([PREDICTIONS[i] for i in chosen], [REFERENCES[i] for i in chosen])
    overlap.update(torch.ones(len(chosen), dtype=torch.bool), EVIDENCE[chosen], torch.arange(len(chosen)), len(chosen))
    yes_no, pairs = POPE(), MME()
    if len(chosen) != 2:  # the rank with two samples has none of these: it must join in all the same
        said, truth = ["yes", "no", "yes", "no"], [["yes"], ["no"], ["yes"], ["yes"]]
        yes_no.update(said, truth)
        pairs.update(said, truth, ids=["a#0", "a#1", "b#0", "b#1"], families=["count"] * 4)
    values = {
        **yes_no.compute(),
        **pairs.compute(),
        **retention.compute(),
        "match": match.compute(),
        **overlap.compute(),
    }
    return {name: float(value) for name, value in values.items()}


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save(figures([[0, 1, 2], [3, 4]][rank]), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(rank_main, (port, str(tmp_path)), nprocs=2)
    alone = figures([0, 1, 2, 3, 4])
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == alone
