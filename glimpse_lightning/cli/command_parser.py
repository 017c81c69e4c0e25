"""Parser of the commands that are no runs of a Trainer."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from glimpse_lightning.runtime.errors import GlimpseError, nearest


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are errors of ours; flags are written out in full.

    Args:
        command: name of the command.
        description: purpose of the command, for its help.
        dotted: where options of a recipe (`--data.test FILE`) belong, for the error about one, with ``{key}`` in the
            option's place; empty: nowhere.
    """

    def __init__(self, command: str, description: str | None, dotted: str = "") -> None:
        super().__init__(prog=f"glimpse-lightning {command}", description=description, allow_abbrev=False)
        self.command, self.dotted = command, dotted

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        flag = unknown[1] if unknown else ""
        if "." in flag and self.dotted:
            raise GlimpseError(f"`{self.command}` has no option {flag}. {self.dotted.format(key=flag[2:])}")
        near = ""
        if flag:
            message = f"there is no option {flag}"
            near = nearest(flag, [option for option in self._option_string_actions if option.startswith("--")])
        raise GlimpseError(f"{message[0].upper()}{message[1:]}.{near} See `{self.command} --help`.")
