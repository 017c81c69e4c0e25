"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class OptimizerOptions:
    """AdamW, linear warm-up, then a cosine.

    Args:
        lr: peak learning rate.
        weight_decay: on matrices; vectors (biases, norms) are spared.
        warmup: share of the training over which the rate rises from 0.
        final: share of the peak rate that is left at the end.
        betas: of AdamW.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def adamw(trained: Sequence[nn.Parameter], options: OptimizerOptions, total: int) -> OptimizerLRScheduler:
    """The optimizer of the parameters ``trained`` and its schedule over ``total`` steps, as Lightning wants them."""
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step / total, options))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def name_parameters(state: dict[str, Any], names: list[str]) -> None:
    """Let an optimizer's state call its parameters by ``names``, in the order of its groups, in place.

    Numbers mean something else to FSDP2, which counts the frozen parameters too.
    """
    if not state:  # another rank writes it
        return
    known = dict(zip([i for group in state["param_groups"] for i in group["params"]], names, strict=True))
    state["state"] = {known[number]: value for number, value in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [known[number] for number in group["params"]]


def learning_rate_factor(progress: float, options: OptimizerOptions) -> float:
    """Factor on the peak learning rate where the share ``progress`` of the training is done."""
    if progress < options.warmup:
        return max(progress / options.warmup, 1e-3)
    done = min(1.0, (progress - options.warmup) / max(1e-9, 1 - options.warmup))
    return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * done))
