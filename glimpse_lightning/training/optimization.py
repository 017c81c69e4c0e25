"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from glimpse_lightning.runtime.errors import GlimpseError


@dataclass
class OptimizerOptions:
    """AdamW, linear warm-up, then a cosine.

    Args:
        lr: peak learning rate.
        lr_of: other peak rates for parts, by glob pattern (``fnmatch``) over parameter names, such as
            ``{"pruner.*": 1.0e-3}``; where several fit, the first one counts.
        weight_decay: weight decay on matrices; vectors (biases, norms) have none.
        warmup: share of the training over which the rate rises from 0.
        final: share of the peak rate that is left at the end.
        betas: decay rates of AdamW's two moments.

    Raises:
        GlimpseError: for a rate or decay below 0, and for a share outside of [0, 1].
    """

    lr: float = 1e-3
    lr_of: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        others = {f"lr_of.{pattern}": lr for pattern, lr in self.lr_of.items()}
        for name, value in {"lr": self.lr, "weight_decay": self.weight_decay, **others}.items():
            if value < 0:
                raise GlimpseError(f"Expected `model.optimizer.{name}` to be at least 0, but got {value}.")
        for name, value in {"warmup": self.warmup, "final": self.final}.items():
            if not 0 <= value <= 1:
                raise GlimpseError(f"Expected `model.optimizer.{name}` to be a share from 0 to 1, but got {value}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise GlimpseError(f"Expected `model.optimizer.betas` to be from 0 to below 1, but got {self.betas}.")


def adamw(trained: Mapping[str, nn.Parameter], options: OptimizerOptions, total: int) -> OptimizerLRScheduler:
    """The optimizer of the parameters ``trained``, by name, and its schedule over ``total`` steps, as Lightning takes
    them.

    Raises:
        GlimpseError: where a pattern of ``lr_of`` fits no trained parameter.
    """
    for pattern in options.lr_of:
        if not any(fnmatch(name, pattern) for name in trained):
            raise GlimpseError(
                f"`optimizer.lr_of` has {pattern!r}, which fits none of the {len(trained)} parameters that are "
                f"trained; the first of them is {next(iter(trained), None)!r}."
            )
    rates = {name: _peak(name, options) for name in trained}
    groups = [
        {"params": [p for name, p in trained.items() if rates[name] == lr and (p.ndim > 1) == decays], "lr": lr,
         "weight_decay": options.weight_decay if decays else 0.0}
        for lr in dict.fromkeys([options.lr, *rates.values()])
        for decays in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step / total, options))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _peak(name: str, options: OptimizerOptions) -> float:
    return next((lr for pattern, lr in options.lr_of.items() if fnmatch(name, pattern)), options.lr)


def name_parameters(state: dict[str, Any], names: list[str]) -> None:
    """Let an optimizer's state call its parameters by ``names``, in the order of its groups, in place.

    FSDP2 numbers parameters in another way, as it counts the frozen ones too.
    """
    if not state:  # another rank writes it
        return
    known = dict(zip([i for group in state["param_groups"] for i in group["params"]], names, strict=True))
    state["state"] = {known[number]: value for number, value in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [known[number] for number in group["params"]]


CONFIGURED = ("initial_lr", "weight_decay", "betas")
"""Configured keys of an optimizer's groups; ``lr`` follows from the schedule."""


def configured(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Configured values of the groups of a fresh optimizer that has its schedule."""
    return [{name: group[name] for name in CONFIGURED} for group in optimizer.param_groups]


def reconfigure(optimizer: torch.optim.Optimizer, schedule: Any, wanted: list[dict[str, Any]]) -> list[str]:
    """Give a restored optimizer and its schedule the configured values; returns the changes in words."""
    changes: list[str] = []
    for index, (group, mine) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        for name, value in mine.items():
            restored = tuple(group[name]) if name == "betas" else group[name]
            if restored != value:
                changes.append(f"{name.removeprefix('initial_')} {group[name]} -> {value}")
                group[name] = value
        if schedule.base_lrs[index] != mine["initial_lr"]:
            schedule.base_lrs[index] = mine["initial_lr"]
            group["lr"] = mine["initial_lr"] * schedule.lr_lambdas[index](schedule.last_epoch)
    return list(dict.fromkeys(changes))


def learning_rate_factor(progress: float, options: OptimizerOptions) -> float:
    """Factor on the peak learning rate where the share ``progress`` of the training is done."""
    if progress < options.warmup:
        return max(progress / options.warmup, 1e-3)
    done = min(1.0, (progress - options.warmup) / max(1e-9, 1 - options.warmup))
    return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * done))
