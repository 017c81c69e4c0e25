"""Training, validation and test on the device, by Lightning: a step of each objective is the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import CUDA, DEVICES, ON_CUDA, PRETENDED, entered, glimpse_tiny, trained_on
from runs import run, write_recipe
from sharded_runs import QUICK, STEPS, fit

from glimpse_lightning.training.strategies import FSDP2

FSDP = Path(__file__).parents[2] / "recipes" / "trainer" / "fsdp.yaml"


@pytest.fixture
def single_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, which a sharding strategy makes, ends with the test."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def the_cpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Trains with an objective on the CPU, once."""
    return cache(lambda name: fit(tmp_path_factory.mktemp("cpu"), name, 1, fixed=True))


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", QUICK)
def test_steps_are_the_cpus(name: str, where: str, tmp_path: Path, the_cpus: Callable[[str], dict[str, Any]]) -> None:
    """Losses, gradients and the figures of a validation, in float32; in bfloat16 the first step's, within rounding."""
    want = the_cpus(name)
    with entered(where):
        got = fit(tmp_path, name, 1, fixed=True, backbone=glimpse_tiny(), **trained_on(where))
    assert len(got["losses"]) == STEPS
    assert got["losses"] == pytest.approx(want["losses"], abs=1e-3)
    assert got["norms"] == pytest.approx(want["norms"], rel=2e-2)
    assert got["val"]["retention"] == pytest.approx(want["val"]["retention"], abs=0.02)
    if where == CUDA:
        half = fit(tmp_path, name, 1, fixed=True, precision="bf16-mixed", max_steps=1, **trained_on(where))
        assert half["losses"][0] == pytest.approx(want["losses"][0], abs=0.05, rel=0.05)
        assert half["norms"][0] == pytest.approx(want["norms"][0], rel=0.2)


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
@pytest.mark.parametrize("name", [pytest.param("kl", marks=pytest.mark.slow), "grpo_both"])
def test_fsdp2_on_one_rank(
    name: str, accelerator: str, tmp_path: Path, single_rank: None, the_cpus: Callable[[str], dict[str, Any]]
) -> None:
    want = the_cpus(name)
    options: dict[str, Any] = {"fixed": True, "val_check_interval": 100, "accelerator": accelerator}
    got = fit(tmp_path, name, 1, strategy=FSDP2(), **options)
    assert got["losses"] == pytest.approx(want["losses"], abs=1e-3)
    assert got["norms"] == pytest.approx(want["norms"], rel=2e-2)


@pytest.mark.parametrize("where", [PRETENDED, pytest.param(CUDA, marks=ON_CUDA)])
def test_the_overlay_of_fsdp_strategy(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], single_rank: None
) -> None:
    """Which torch and Lightning refuse without a GPU."""
    recipe = write_recipe(tmp_path)
    flags = ["--config", str(FSDP), "--trainer.devices", "1", "--trainer.max_steps", "2", "--trainer.callbacks", "[]"]
    flags += ["--model.test_after_fit", "false", "--trainer.accelerator", "cuda" if where == CUDA else "cpu"]
    status = run("fit", recipe, tmp_path / "runs", *flags)
    assert (status == 0) == (where == CUDA), capsys.readouterr().err
