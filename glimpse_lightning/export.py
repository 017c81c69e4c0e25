"""``export``: a saved pruner in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from glimpse_lightning.checkpoints import load_pruner, save_pruner, whole_or_nothing
from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.upstream import read_json
from glimpse_lightning.upstream_export import write_upstream


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise GlimpseError(f"{message[0].upper()}{message[1:]}. See `export --help`.")


def run(args: Sequence[str]) -> Path:
    """Export as the command line says; returns the folder that was written.

    Raises:
        GlimpseError: where the pruner cannot be read, or not be expressed in the format.
    """
    parser = _Parser(prog="glimpse-lightning export", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pruner", required=True, help="folder or hub id of a saved pruner, ours or the reference's")
    parser.add_argument("--output", required=True, help="folder to write; a pruner that is there is replaced")
    parser.add_argument(
        "--format",
        choices=("upstream", "glimpse"),
        default="glimpse",
        help="upstream: GlimpsePrune's config.json + new_modules_gp.pt; glimpse: ours (default)",
    )
    parser.add_argument(
        "--base",
        help="upstream only: folder of the base model, whose config.json (as published) goes along; GlimpsePrune's "
        "loader replaces its model's configuration by that file. Default: what the pruner was read with",
    )
    options = parser.parse_args(list(args))
    if options.base is not None and options.format != "upstream":
        raise GlimpseError("Expected `--base` with `--format upstream` only; leave it out.")
    pruner, folder = load_pruner(options.pruner), Path(options.output)
    if options.format == "glimpse":
        return save_pruner(pruner, folder)
    base = None if options.base is None else read_json(Path(options.base) / "config.json")
    with whole_or_nothing(folder) as temporary:
        write_upstream(pruner, temporary, base)
    return folder
