"""Checks of a run's settings before it starts, and Lightning's errors about others in one paragraph."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from glimpse_lightning.cli.checkpoint_config import check_checkpoint
from glimpse_lightning.runtime.errors import GlimpseError

LEAST = {
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0,
    "min_epochs": 0, "min_steps": 0, "num_nodes": 1, "num_sanity_val_steps": -1,
}  # fmt: skip
"""Least values of the Trainer's arguments that Lightning itself does not check."""

WORK = {
    "fit": ("max_steps", "max_epochs", "limit_train_batches"), "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",), "predict": ("limit_predict_batches",),
}  # fmt: skip
"""The Trainer's arguments that leave a command nothing to do when they are 0."""

SEEDS = 2**32
"""Number of seeds that numpy takes."""

LIGHTNING = Path(lightning.__file__).parent
STEPS = ("advance", "_evaluation_step", "_predict_step")
"""Functions of Lightning's loops under which batches are worked on."""


def check_settings(command: str, config: Mapping[str, Any]) -> None:
    """Check a command's parsed configuration before anything is instantiated.

    Raises:
        GlimpseError: for a setting that cannot be followed, or that leaves the command nothing to do.
    """
    trainer = config["trainer"]
    check_checkpoint(config.get("ckpt_path"))
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < SEEDS:
        raise GlimpseError(f"Expected `seed_everything` to be between 0 and {SEEDS - 1}, but got {seed}.")
    for name, least in LEAST.items():
        value = trainer.get(name)
        if value is not None and value < least:
            raise GlimpseError(f"Expected `trainer.{name}` to be at least {least}, but got {value}.")
    for name in WORK[command]:
        if trainer.get(name) == 0:
            instead = "; to evaluate without training, use `test`" if command == "fit" else ""
            raise GlimpseError(
                f"`trainer.{name}: 0` leaves `{command}` nothing to do. Raise it or leave it out{instead}."
            )
    if command == "fit" and trainer.get("val_check_interval") == 0:
        raise GlimpseError(
            "Expected `trainer.val_check_interval` to be above 0, but got 0. `trainer.limit_val_batches: 0` leaves "
            "validation out."
        )
    if trainer.get("enable_checkpointing") is False:
        raise GlimpseError(
            "`trainer.enable_checkpointing: false` cannot be followed: a fit goes on from its last checkpoint where it "
            "was interrupted, and `test` takes its weights from there. Leave it out; `RunCheckpoints` in "
            "`trainer.callbacks` says how often one is saved, and how many are kept."
        )
    if trainer.get("barebones"):
        raise GlimpseError(
            "`trainer.barebones: true` cannot be followed: without logger, checkpoints and callbacks a run leaves "
            "nothing. Leave it out; `bench` measures speed."
        )


def check_launcher(trainer: Trainer) -> None:
    """Raise GlimpseError where a trainer of several nodes would wait endlessly for processes that nothing starts."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise GlimpseError(
            f"`trainer.num_nodes: {trainer.num_nodes}` needs a launcher that starts this command on every node "
            "(`srun`, `torchrun`; docs/scale.md), or MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment of each."
        )


@contextmanager
def readable_settings(trainer: Mapping[str, Any]) -> Iterator[None]:
    """Turn Lightning's objection to a setting into one paragraph that names it, while the context is open.

    An objection is an error that Lightning's own code raises before any batch runs, or in one of its callbacks. All
    other errors pass unchanged.

    Args:
        trainer: parsed arguments of the Trainer.

    Raises:
        GlimpseError: in place of the objection.
    """
    try:
        yield
    except GlimpseError:
        raise
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        if not (isinstance(error, MisconfigurationException) or _objects(error)):
            raise
        text = " ".join(str(error).split())
        name = _named(text, trainer)
        raise GlimpseError(f"`trainer.{name}`: {text}" if name else text) from error


def _objects(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(LIGHTNING)]
    last = frames[-1]
    if last not in inside or not (last.line or "").startswith("raise "):
        return False
    in_callback = Path(last.filename).is_relative_to(LIGHTNING / "pytorch" / "callbacks")
    return in_callback or not any(frame.name in STEPS for frame in inside)


def _named(text: str, trainer: Mapping[str, Any]) -> str | None:
    """The argument that an objection names, by its name as code, or else by its value."""
    for word in re.findall(r"\w+", text):
        if word in trainer and ("_" in word or re.search(rf"`{word}`|\b{word}=", text)):
            return word
    given = {name: _plain(value) for name, value in trainer.items() if isinstance(value, str) and len(value) > 2}
    return next((name for name, value in given.items() if value in _plain(text)), None)


def _plain(text: str) -> str:
    return text.lower().replace("-", "_")
