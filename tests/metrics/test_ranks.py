"""Metrics over two ranks equal those over one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from ranks import on_two_ranks

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


def _figures_of_a_rank() -> dict[str, float]:
    dist.init_process_group("gloo")
    return figures([[0, 1, 2], [3, 4]][dist.get_rank()])


def test_two_ranks(tmp_path: Path) -> None:
    alone = figures([0, 1, 2, 3, 4])
    assert on_two_ranks(_figures_of_a_rank, tmp_path) == [alone, alone]
