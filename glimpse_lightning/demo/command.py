"""The command line of ``demo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from glimpse_lightning.backbones.embedded import TINY
from glimpse_lightning.bench.recipes import pruners
from glimpse_lightning.cli.backbone_options import LOCAL, add_host, add_options, backbone_of
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.demo.answers import Methods
from glimpse_lightning.model.storage import load_pruner
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError

METHODS = ("methods/fastv", "methods/divprune", "methods/random")
"""Recipes that are shown where none is named."""
MISSING = "`demo` needs the extra `demo`: pip install 'glimpse-lightning[demo]' ({} is missing)."


def arguments() -> CommandParser:
    """The parser of `demo`'s command line."""
    parser = CommandParser("demo", "Open a page that asks about a picture with and without pruning (docs/deploy.md).")
    add_options(parser, default=TINY)
    add_host(parser)
    parser.add_argument("--pruner", action="append", default=[], help="saved pruner: a folder or hub id; repeatable")
    parser.add_argument(
        "--recipe", action="append", default=[],
        help=f"recipe whose pruner is shown, repeatable; without any and without --pruner {', '.join(METHODS)}",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=7860, help="port; 0: any free one (7860)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="length of the longest answer (64)")
    return parser


def run(args: Sequence[str]) -> int:
    """Show the page until the process is interrupted; returns the exit status.

    Raises:
        GlimpseError: where a package is missing, an option is wrong, or the model cannot be loaded.
    """
    options = arguments().parse_args(list(args))
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise GlimpseError(MISSING.format(error.name)) from error
    from glimpse_lightning.demo.page import MAX_FILE, build

    page = build(methods_of(options), options.backbone)
    if options.host not in LOCAL:
        print(f"warning: everyone who reaches {options.host} can use the page.", file=sys.stderr)
    try:
        _, address, _ = page.launch(
            server_name=options.host, server_port=options.port or None, quiet=True, share=False,
            footer_links=[], max_file_size=MAX_FILE, prevent_thread_lock=True, ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise GlimpseError(f"Cannot listen on {options.host}:{options.port}: {error} Try --port 0.") from error
    print(f"Open {address} in a browser; Ctrl+C ends.", flush=True)
    page.block_thread()
    return 0


def methods_of(options: Any) -> Methods:
    """The methods that a parsed command line asks for."""
    recipes = options.recipe or ([] if options.pruner else list(METHODS))
    found: dict[str, Pruner] = {}
    for recipe, (_, pruner, _) in zip(recipes, pruners(recipes, []), strict=True):
        found[name_of(recipe, found)] = pruner
    for source in options.pruner:
        found[name_of(source, found)] = load_pruner(source)
    backbone = backbone_of(options)
    for pruner in found.values():
        pruner.to(backbone.model.dtype)
    return Methods(backbone, found, options.max_new_tokens)


def name_of(source: str, taken: Collection[str]) -> str:
    """A short name for a recipe or a saved pruner, which no other method has."""
    path = Path(source).with_suffix("") if source.endswith((".yaml", ".yml")) else Path(source)
    name = path.parent.name if path.name == "pruner" and path.parent.name else path.name or source
    return name if name not in taken else source
