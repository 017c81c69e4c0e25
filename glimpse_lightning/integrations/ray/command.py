"""The command line of ``batch``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from glimpse_lightning.cli.backbone_options import add_options
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.integrations.ray.job import BatchJob
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import show

MISSING = "`batch` needs the extra `ray`: pip install 'glimpse-lightning[ray]' ({} is missing)."
RUN = ("input", "output", "split", "subset", "actors", "batch_size", "num_gpus", "address")
"""Options that no answer depends on, or that name what is read and written; all others are arguments of the job."""


def arguments() -> CommandParser:
    """The parser of `batch`'s command line."""
    parser = CommandParser("batch", "Answer a table of questions on a Ray cluster (docs/deploy.md).")
    parser.add_argument("--input", required=True, help="Parquet, JSONL, CSV, ..., a folder, or OWNER/NAME on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="folder of the answers, in Parquet")
    add_options(parser)
    parser.add_argument("--pruner", help="saved pruner: a folder or hub id; default: nothing is pruned")
    parser.add_argument("--recipe", help="recipe whose pruner is used, for methods without training")
    parser.add_argument("--pruner_source", type=yaml.safe_load, default={}, help="as --source, of --pruner")
    parser.add_argument("--retention", type=float, help="share of tokens to keep, in place of the pruner's budget")
    parser.add_argument("--threshold", type=float, help="threshold of a Threshold policy, likewise")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="length of the longest answer (32)")
    parser.add_argument("--columns", type=yaml.safe_load, default={}, help="'{id: nr, question: ask, image: file}'")
    parser.add_argument("--wording", type=yaml.safe_load, default={}, help="wording of the prompt: '{suffix: TEXT}'")
    parser.add_argument("--root", default="", help="folder that image paths may not leave (that of --input)")
    parser.add_argument("--split", help="split of an input with several")
    parser.add_argument("--subset", help="configuration of a dataset on the Hub")
    parser.add_argument("--actors", type=int, help="actors, each with a model (one for each GPU, else 1)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows that are asked together (16)")
    parser.add_argument("--num_gpus", type=float, help="GPUs of an actor, or a share (1 where there are any)")
    parser.add_argument("--address", help="address of a Ray cluster (RAY_ADDRESS, else one on this machine)")
    return parser


def run(args: Sequence[str]) -> int:
    """Answer the rows that are not in the output yet, and print the figures; returns the exit status.

    Raises:
        GlimpseError: where a package is missing, an option is wrong, or a model or an input cannot be used.
    """
    options = vars(arguments().parse_args(list(args)))
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise GlimpseError(MISSING.format(error.name)) from error
    from glimpse_lightning.integrations.ray.batch import Workers, run_batch

    given = {name: options.pop(name) for name in RUN}
    workers = Workers(**{name: given.pop(name) for name in ("actors", "batch_size", "num_gpus", "address")})
    for name in ("backbone", "pruner", "recipe"):
        options[name] = _whole_path(options[name])
    if options["max_new_tokens"] < 1:
        raise GlimpseError(f"Expected `--max_new_tokens` to be at least 1, but got {options['max_new_tokens']}.")
    summary = run_batch(BatchJob(**options), workers=workers, **given)
    show(str(summary), f"Written: {given['output']}.")
    return 0


def _whole_path(name: str | None) -> str | None:
    """The whole path of a file or folder, which workers find from another folder; other names unchanged."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name
