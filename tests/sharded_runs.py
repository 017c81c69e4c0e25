"""Small training runs, by one process or by two ranks that share the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.objectives import GRPO, KL, Attribution, Mask
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.runtime.gathering import local_share, whole
from glimpse_lightning.training.module import OptimizerOptions, PruningModule
from glimpse_lightning.training.strategies import FSDP2

REWARDS: dict[str, Any] = {"length": {"weight": 1.0, "free": 1, "longest": 6}, "exact_match": 1.0}
OPTIONS: dict[str, Any] = {"rewards": REWARDS, "group_size": 4, "max_new_tokens": 4, "temperature": 1.7}


class Adapted(GRPO):
    """With adapters that start from the same numbers however the model is loaded."""

    def prepare(self, model: gl.PrunedVLM) -> None:
        super().prepare(model)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                values = torch.linspace(-0.1, 0.1, parameter.numel(), device=parameter.device)
                parameter.data = values.view_as(parameter)


OBJECTIVES: dict[str, Any] = {
    "kl": lambda: KL(anneal=0.0, budget_weight=2.0, sharpness=1.0),  # sharp gates open or close by a rounding
    "attribution": lambda: Attribution(),
    "mask": lambda: Mask(),
    "grpo": lambda: GRPO(**OPTIONS, iterations=2, kl_weight=0.1),
    "grpo_both": lambda: Adapted(
        **(OPTIONS | {"rewards": REWARDS | {"pruning_rate": 1.0}}),
        retention=0.4,
        train=["language_model", "pruner"],
        lora=LoRA(r=4),
        prefills=2,
    ),
    "grpo_embeddings": lambda: Adapted(**OPTIONS, lora=LoRA(r=4), old="replay", clip=None, forward="embeddings"),
}
QUICK = [pytest.param(name, marks=pytest.mark.slow if name == "grpo" else ()) for name in OBJECTIVES]
"""By default grpo_both stands for grpo, which trains less."""
STEPS = 2
"""Of a run by default. The figures of its validation show what the second step's update was."""
END, GO_ON = 2, 100
"""Token ids: the one that ends an answer, and a word's."""


class Watch(Callback):
    """Loss of each step, the norm of its gradient over all ranks, and this rank's share of the parameters."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.share: tuple[int, int] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss: Tensor = outputs["loss"].detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        self.losses.append(loss.item())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        grads = [whole(p.grad) for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())
        self.share = local_share(pl_module)


def stratified(probs: Tensor, num_samples: int, **_: Any) -> Tensor:
    """In place of drawing: the answers of a group are spread evenly over the distribution, whatever the rank."""
    place = (torch.arange(len(probs), device=probs.device) % 4 + 0.5) / 4
    return (probs.cumsum(-1) < place[:, None]).sum(-1, keepdim=True).clamp(max=probs.shape[-1] - 1)


def decided(probs: Tensor, num_samples: int, **_: Any) -> Tensor:
    """In place of drawing: every other answer ends at once, the rest never do, whatever the distribution says."""
    return torch.where(torch.arange(len(probs), device=probs.device) % 2 == 0, END, GO_ON)[:, None]


def every_other(like: Tensor, **_: Any) -> Tensor:
    """In place of uniform numbers: a 1, which is below no probability, then a 0, which is below all of them."""
    return ((torch.arange(like.numel(), device=like.device) + 1) % 2).float().view(like.shape)


def module(objective: Objective, recompute: bool = False, backbone: Any = "glimpse-tiny") -> PruningModule:
    torch.manual_seed(0)
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, dropout=0.0)
    return PruningModule(
        backbone, after_layer=2, scorer=scorer, policy=gl.policies.Threshold(min_tokens=2), objective=objective,
        optimizer=OptimizerOptions(lr=1e-4, warmup=0, final=1), max_new_tokens=3, fit_baselines=[],
        activation_checkpointing=recompute,
    )  # fmt: skip


def data(batch: int) -> VQAData:
    val = gl.GlyphVQA("val", 5, image_size=224)
    train = gl.GlyphVQA("train", 16, image_size=224)
    return VQAData(train, val, val, batch_size=batch, eval_batch_size=2, num_workers=0)


def trainer(root: Path, callbacks: list[Callback], **kwargs: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"max_steps": STEPS, "val_check_interval": STEPS, "check_val_every_n_epoch": None, "accelerator": "cpu"}
    return Trainer(
        logger=False, default_root_dir=root, callbacks=callbacks, num_sanity_val_steps=0,
        gradient_clip_val=1.0, **(quiet | defaults | kwargs),
    )  # fmt: skip


def fit(
    root: Path,
    name: str,
    world: int,
    resume: Path | None = None,
    save: Path | None = None,
    strategy: Any = None,
    callbacks: Sequence[Callback] = (),
    recompute: bool = False,
    fixed: bool = False,
    backbone: Any = "glimpse-tiny",
    **kwargs: Any,
) -> dict[str, Any]:
    """Train; what is drawn at random is replaced, so that ranks and one process do the same.

    Args:
        root: of the run.
        name: one of the objectives.
        world: 1 process, or this rank of 2.
        resume, save: checkpoint to start from, and to leave behind.
        strategy: of two ranks; default: ``FSDP2()``.
        callbacks: further ones.
        recompute: whether activations are checkpointed.
        fixed: whether answers and keep decisions are the same whatever the model says, so that no rounding flips one.
        backbone: a loaded one, or its name.
        **kwargs: further arguments of the trainer.
    """
    watch = Watch()
    sharded = strategy or FSDP2() if world == 2 else strategy
    many = {"devices": world} | ({} if sharded is None else {"strategy": sharded})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", decided if fixed else stratified)
        patch.setattr(torch, "rand_like", every_other if fixed else lambda like, **_: torch.full_like(like, 0.5))
        mine = module(OBJECTIVES[name](), recompute, backbone)
        runner = trainer(root, [watch, *callbacks], **(many | kwargs))
        runner.fit(mine, datamodule=data(4 // world), ckpt_path=resume)
    if save is not None:
        runner.save_checkpoint(save)
    figures = mine.summary.metrics if mine.summary else {}
    state = {n: whole(value) for n, value in mine.state_dict().items()}
    return {"losses": watch.losses, "norms": watch.norms, "share": watch.share, "val": figures, "state": state}
