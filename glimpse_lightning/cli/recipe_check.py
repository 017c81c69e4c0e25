"""Checks that recipes can run, before any of them runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from typing_extensions import override

from glimpse_lightning.cli.recipe_files import names_class
from glimpse_lightning.cli.trainer_runs import RunCLI, prepare_parsing
from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class Checked:
    """A recipe that can run: every setting as resolved, and the model it describes, its backbone not yet loaded."""

    config: dict[str, Any]
    model: LightningModule


class CheckCLI(RunCLI):
    """Parses a recipe and instantiates its model and data, but creates no folder and runs nothing."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Skip the Trainer: nothing runs."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


def check(command: str, paths: Sequence[Path]) -> Iterator[Checked]:
    """Parse and instantiate recipes, one after another; nothing runs and nothing is written.

    Raises:
        GlimpseError: where one cannot run; its message begins with the recipe's path.
    """
    prepare_parsing()
    with _without_seeds():
        yield from _checked(command, paths)


@contextmanager
def _without_seeds() -> Iterator[None]:
    """No "Seed set to 0" for recipes that only are looked at."""
    log = logging.getLogger("lightning.fabric.utilities.seed")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def _checked(command: str, paths: Sequence[Path]) -> Iterator[Checked]:
    parsers: dict[tuple[bool, bool], CheckCLI] = {}  # building a parser takes longer than using it
    for path in paths:
        args = [command, "--config", str(path)]
        kind = names_class("model", [], [path]), names_class("data", [], [path])
        try:
            cli = parsers.get(kind)
            if cli is None:
                cli = parsers[kind] = CheckCLI(args, [path])
            else:
                cli.config = cli.parser.parse_args(args)
                cli.instantiate_classes()
        except GlimpseError as error:
            raise GlimpseError(f"{path}: {error}") from error
        text = cli._parser(command).dump(cli.config[command], skip_link_targets=False)
        yield Checked(yaml.safe_load(text), cli.model)
