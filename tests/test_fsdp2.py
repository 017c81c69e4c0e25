"""FSDP2 on two gloo ranks computes what one process computes, for every objective."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from halves import attends_in_bfloat16
from ranks import on_two_ranks
from sharded_runs import QUICK, STEPS, fit
from torch.distributed.device_mesh import init_device_mesh

import glimpse_lightning as gl
from glimpse_lightning.model.sharding import shard
from glimpse_lightning.objectives import GRPO
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.training.module import RECOMPUTES_SHARDED
from glimpse_lightning.training.strategies import FSDP2


def same_training(rank: dict[str, Any], alone: dict[str, Any]) -> None:
    """Losses, gradients, and figures of a validation split of 5, which two ranks pad."""
    assert all(norm > 1e-3 for norm in alone["norms"]) and len(alone["losses"]) == STEPS
    assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    local, total = rank["share"]
    assert 0.45 < local / total < 0.6
    assert close(rank["val"], alone["val"])


@pytest.mark.parametrize("name", [param for param in QUICK if "kl" not in param.values])  # it is trained below
def test_two_ranks_train_as_one(name: str, tmp_path: Path) -> None:
    # Where answers are drawn, gradients of grpo_both may be nothing but rounding.
    run = partial(fit, fixed=name == "grpo_both")
    alone = run(tmp_path, name, 1)
    for rank in on_two_ranks(run, tmp_path, tmp_path, name, 2):
        same_training(rank, alone)


def _fit_in_bfloat16(root: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"recompute": True, "fixed": True, "precision": "bf16-mixed"}
    return fit(root, "grpo_both", 2, **options, max_steps=2, val_check_interval=100)


@pytest.mark.slow
@attends_in_bfloat16
@pytest.mark.skipif(not RECOMPUTES_SHARDED, reason="torch of this version does not; the module refuses it")
def test_mixed_precision_and_activation_checkpointing(tmp_path: Path) -> None:
    alone = fit(tmp_path, "grpo_both", 1, fixed=True, precision="bf16-mixed", max_steps=2, val_check_interval=100)
    assert all(norm > 0 for norm in alone["norms"])
    for rank in on_two_ranks(_fit_in_bfloat16, tmp_path, tmp_path):
        assert rank["norms"] == pytest.approx(alone["norms"], rel=0.1)


def _recompute_in_vain(root: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glimpse_lightning.training.module.RECOMPUTES_SHARDED", False)
        with pytest.raises(GlimpseError) as refused:
            fit(root, "kl", 2, recompute=True)
    return str(refused.value)


def test_a_torch_that_cannot_recompute_sharded_layers_is_told_so(tmp_path: Path) -> None:
    for message in on_two_ranks(_recompute_in_vain, tmp_path, tmp_path):
        assert "`model.activation_checkpointing` fails on a sharded model" in message and "Update torch" in message


def _finish_apart(root: Path) -> list[int]:
    """Answers end at once on one rank, and never on the other; then both learn from them."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.Random(), gl.policies.KeepRatio(0.5))])
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
    objective = GRPO(rewards={"length": {"weight": 1.0, "free": 1, "longest": 6}}, group_size=2, max_new_tokens=3)
    objective.prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in objective.trainable))
    shard(model, init_device_mesh("cpu", (2,)))
    objective.remember(model)
    data, lengths = gl.GlyphVQA("train", 4, image_size=224), []
    batches = [model.backbone.collate([data[2 * rank + index]]) for index in range(2)]
    model.generation_config.eos_token_id = list(range(model.config.text_config.vocab_size)) if rank else None
    for batch in batches:
        result = objective.step(model, batch)
        result.loss.backward()
        lengths.append(int(result.logs["length_max"]))
    return lengths


def test_ranks_may_finish_their_answers_at_different_lengths(tmp_path: Path) -> None:
    assert on_two_ranks(_finish_apart, tmp_path, tmp_path) == [[3, 3], [1, 1]]


NO_VALIDATION: dict[str, Any] = {"val_check_interval": 100}


def _iterated(root: Path) -> dict[str, Any]:
    """A step and a checkpoint, and two more steps from there."""
    fit(root, "grpo", 2, save=root / "two.ckpt", strategy=FSDP2(True), max_steps=1, **NO_VALIDATION)
    return fit(root, "grpo", 2, resume=root / "two.ckpt", strategy=FSDP2(True), max_steps=3, **NO_VALIDATION)


def test_two_ranks_resume_from_shares_that_two_saved(tmp_path: Path) -> None:
    """GRPO's checkpoint holds the rollouts of each rank, in the middle of their iterations."""
    alone = fit(tmp_path, "grpo", 1, max_steps=3, **NO_VALIDATION)
    for rank in on_two_ranks(_iterated, tmp_path, tmp_path):
        assert rank["losses"] == pytest.approx(alone["losses"][1:], abs=1e-4)
    assert (tmp_path / "two.ckpt").is_dir()


def _resumed(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run with a checkpoint at its end, and one more step from there."""
    first = fit(root, "kl", 2, save=root / "two.ckpt", strategy=FSDP2(False))
    return first, fit(root, "kl", 2, resume=root / "two.ckpt", max_steps=STEPS + 1, **NO_VALIDATION)


def test_two_ranks_train_as_one_and_resume_from_the_file_that_two_saved(tmp_path: Path) -> None:
    alone = fit(tmp_path, "kl", 1, save=tmp_path / "one.ckpt")
    later = fit(tmp_path, "kl", 1, resume=tmp_path / "one.ckpt", max_steps=STEPS + 1, **NO_VALIDATION)
    ranks = on_two_ranks(_resumed, tmp_path, tmp_path)
    one = fit(tmp_path, "kl", 1, resume=tmp_path / "two.ckpt", max_steps=STEPS + 1, **NO_VALIDATION)
    for first, _ in ranks:
        same_training(first, alone)
    for run in (one, *(second for _, second in ranks)):
        assert run["losses"] == pytest.approx(later["losses"], abs=1e-4)
        for name, value in later["state"].items():  # which the optimizer's state has its part in
            torch.testing.assert_close(run["state"][name], value, atol=1e-5, rtol=1e-4)
    assert (tmp_path / "two.ckpt").is_file()
    for key, value in torch.load(tmp_path / "two.ckpt")["state_dict"].items():
        assert value.shape == alone["state"][key].shape and type(value) is torch.Tensor


@pytest.mark.slow
def test_two_ranks_resume_from_what_one_saved(tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_check_interval": 100}
    alone = fit(tmp_path, "kl", 1, max_steps=4, **options)
    fit(tmp_path, "kl", 1, save=tmp_path / "one.ckpt", max_steps=2, **options)
    for rank in on_two_ranks(_resume_one, tmp_path, tmp_path):
        assert rank["losses"] == pytest.approx(alone["losses"][2:], abs=1e-4)
        for name, value in alone["state"].items():
            torch.testing.assert_close(rank["state"][name], value, atol=1e-5, rtol=1e-4)


def _resume_one(root: Path) -> dict[str, Any]:
    return fit(root, "kl", 2, resume=root / "one.ckpt", max_steps=4, val_check_interval=100)


def close(a: Any, b: Any) -> bool:
    """Equality up to rounding, at any depth."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    return abs(a - b) < 1e-4 if isinstance(a, float) else a == b


def _resume_other(root: Path) -> str:
    try:
        fit(root, "kl", 2, resume=root / "one.ckpt", max_steps=4)
    except GlimpseError as error:
        return str(error)
    return ""


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"vlm.x": torch.zeros(1)}, "optimizer_states": []}, tmp_path / "one.ckpt")
    for message in on_two_ranks(_resume_other, tmp_path, tmp_path):
        assert "other trained parameters" in message
