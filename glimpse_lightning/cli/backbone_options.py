"""Options that commands without a recipe of runs share: their model, how it is loaded, and the host of a server."""

from __future__ import annotations

from typing import Any

import yaml

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.runtime.dtypes import default_device

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that this machine alone reaches."""


def add_options(parser: CommandParser, default: str | None = None) -> None:
    """Add the options of the model to a parser.

    Args:
        parser: the parser.
        default: the model where none is named; ``None``: one has to be.
    """
    text = "an embedded model (glimpse-tiny), a hub id or a folder"
    parser.add_argument("--backbone", required=default is None, default=default, help=text)
    parser.add_argument("--dtype", help="data type of the weights (as saved)")
    parser.add_argument("--device", default="auto", help="device (auto)")
    parser.add_argument("--attn_implementation", help="attention kernel of transformers (sdpa)")
    parser.add_argument("--processor", type=yaml.safe_load, help="settings of the image processor (YAML mapping)")
    parser.add_argument("--source", type=yaml.safe_load, default={}, help="where files come from: '{revision: main}'")


def add_host(parser: CommandParser) -> None:
    """Add the option of a server's address to a parser."""
    parser.add_argument("--host", default=LOCAL[0], help="address to listen on (127.0.0.1: this machine only)")


def backbone_of(options: Any) -> Backbone:
    """The model that parsed options ask for, with its processor.

    Raises:
        GlimpseError: where it cannot be loaded, or has no processor.
    """
    device = default_device() if options.device == "auto" else options.device
    backbone = load_backbone(
        options.backbone, dtype=options.dtype, attn_implementation=options.attn_implementation, device_map=device,
        processor=options.processor, **options.source,
    )  # fmt: skip
    backbone.tokenizer  # noqa: B018  raises where the model has no processor
    return backbone
