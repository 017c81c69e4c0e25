"""Parser of the commands that are no runs of a Trainer."""

from __future__ import annotations

import argparse
from typing import NoReturn

from glimpse_lightning.runtime.errors import GlimpseError


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are errors of ours; flags are written out in full.

    Args:
        command: name of the command.
        description: purpose of the command, for its help.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"glimpse-lightning {command}", description=description, allow_abbrev=False)
        self.command = command

    def error(self, message: str) -> NoReturn:
        raise GlimpseError(f"{message[0].upper()}{message[1:]}. See `{self.command} --help`.")
