"""Evaluation on two ranks gives what it gives on one, also where the samples do not divide evenly."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

WORLD = 2


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _evaluate(root: Path, **kwargs: Any) -> dict[str, Any]:
    from lightning.pytorch import Trainer
    from test_module import glyphs, random_module

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    module = random_module(0.3)
    runner = Trainer(accelerator="cpu", logger=False, default_root_dir=root, **quiet, **kwargs)
    runner.test(module, datamodule=glyphs(5, batch=2), verbose=False)
    assert module.summary is not None
    figures = module.summary.metrics
    return {"ids": sorted(record.id for record in module.summary.records), **figures}


def _rank(rank: int, port: int, root: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.save(_evaluate(root, devices=WORLD, strategy="ddp"), root / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (_free_port(), tmp_path), nprocs=WORLD)
    alone = _evaluate(tmp_path, devices=1)
    assert len(alone["ids"]) == 5
    for rank in range(WORLD):
        assert _close(torch.load(tmp_path / f"rank{rank}.pt", weights_only=False), alone)


def _close(a: Any, b: Any) -> bool:
    """Equality up to rounding, at any depth."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[name], b[name]) for name in a)
    return abs(a - b) < 1e-5 if isinstance(a, float) else a == b
