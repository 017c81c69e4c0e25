"""The command line of ``serve``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml

from glimpse_lightning.bench.recipes import pruners
from glimpse_lightning.cli.backbone_options import LOCAL, add_host, add_options, backbone_of
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.storage import load_pruner
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError

KEY = "GLIMPSE_API_KEY"
"""Environment variable that holds the API key where `--api_key` does not name one."""
MISSING = "`serve` needs the extra `serve`: pip install 'glimpse-lightning[serve]' ({} is missing)."


def arguments() -> CommandParser:
    """The parser of `serve`'s command line."""
    parser = CommandParser("serve", "Serve a pruned model with OpenAI's chat interface (docs/deploy.md).")
    add_options(parser)
    add_host(parser)
    parser.add_argument("--pruner", help="saved pruner: a folder or hub id; default: nothing is pruned")
    parser.add_argument("--recipe", help="recipe whose pruner is served, for methods without training")
    parser.add_argument("--retention", type=float, help="share of tokens to keep, unless a request names its own")
    parser.add_argument("--threshold", type=float, help="threshold of a Threshold policy, likewise")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any free one (8000)")
    parser.add_argument("--name", help="name of the model in requests (that of the backbone)")
    parser.add_argument("--api_key", help=f"key that clients have to send; better by the environment's {KEY}")
    parser.add_argument("--pruner_source", type=yaml.safe_load, default={}, help="the same of --pruner")
    parser.add_argument("--max_batch", type=int, default=16, help="most requests answered together (16)")
    parser.add_argument("--max_batch_tokens", type=int, default=32_768, help="most prompt tokens of a batch (32768)")
    parser.add_argument("--batch_wait", type=float, default=0.05, help="seconds to wait for requests being read (0.05)")
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="length of the longest answer (1024)")
    parser.add_argument("--max_waiting", type=int, default=128, help="most requests at a time; others get 503 (128)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for an answer (120)")
    parser.add_argument("--max_body", type=int, default=32 * 2**20, help="bytes of the largest request (32 MiB)")
    parser.add_argument("--max_images", type=int, default=16, help="images in a request (16)")
    parser.add_argument("--max_image_pixels", type=int, default=40_000_000, help="pixels of an image (40 million)")
    parser.add_argument("--allow_http", action="store_true", help="fetch images from public http(s) addresses")
    return parser


def run(args: Sequence[str]) -> int:
    """Serve until the process is asked to stop, then finish what has begun; returns the exit status.

    Raises:
        GlimpseError: where a package is missing, an option is wrong, or the model cannot be loaded.
    """
    options = arguments().parse_args(list(args))
    try:
        import fastapi  # noqa: F401
        import openai  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise GlimpseError(MISSING.format(error.name)) from error
    for name in ("max_batch", "max_batch_tokens", "max_new_tokens", "max_waiting", "timeout", "max_body", "max_images"):
        if getattr(options, name) <= 0:
            raise GlimpseError(f"Expected `--{name}` to be positive, but got {getattr(options, name)}.")
    share_memory_pools()
    key = options.api_key or os.environ.get(KEY)
    if options.host not in LOCAL and key is None:
        print(
            f"warning: everyone who reaches {options.host}:{options.port} can use the model; set {KEY}.",
            file=sys.stderr,
        )
    app = app_of(options, key)
    # Uvicorn answers what has begun, and then raises the signal again, which then means nothing more.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        app, host=options.host, port=options.port, log_level="info", access_log=False,
        timeout_graceful_shutdown=int(options.timeout) + 1,
    )  # fmt: skip
    return 0


def share_memory_pools(pools: int = 2) -> None:
    """Let all threads share ``pools`` of glibc's memory pools; nothing with other C libraries.

    By default every thread that reads images gets one, and each keeps what its largest image took: 16 % more memory
    after 2,000 requests.
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(arena_max, pools)


def app_of(options: Any, key: str | None = None) -> Any:
    """The application that a parsed command line asks for."""
    from glimpse_lightning.serving.app import build_app
    from glimpse_lightning.serving.batcher import Batcher
    from glimpse_lightning.serving.chat_request import Limits
    from glimpse_lightning.serving.handler import ChatHandler, OneModel
    from glimpse_lightning.serving.media import Media
    from glimpse_lightning.serving.metrics import Metrics
    from glimpse_lightning.serving.sampling import settings_of

    model = model_of(options)
    media = Media(options.allow_http, max_pixels=options.max_image_pixels)
    limits = Limits(media, options.max_images, options.max_new_tokens, settings_of(model.generation_config))
    metrics = Metrics()
    batcher = Batcher(
        model, options.max_batch, options.max_batch_tokens, options.batch_wait, on_batch=metrics.batch.observe
    )
    models = OneModel(model, options.name or options.backbone)
    handler = ChatHandler(
        models, batcher, metrics, limits, options.max_waiting, options.timeout, options.retention, options.threshold
    )
    what = "nothing (no --pruner)" if model.pruner is None else ", ".join(map(_named, model.pruner.stages))
    print(f"Serving {models.force_model} on {model.device}, pruned by {what}.", flush=True)
    return build_app(handler, options.max_body, key)


def pruner_of(options: Any) -> Pruner | None:
    """The pruner that a parsed command line asks for; ``None`` where nothing is pruned.

    Raises:
        GlimpseError: where pruner and recipe are both named, a policy has no such budget, or nothing is pruned.
    """
    if options.pruner and options.recipe:
        raise GlimpseError("Expected either `--pruner` or `--recipe`, but got both.")
    pruner: Pruner | None = None
    if options.pruner:
        pruner = load_pruner(options.pruner, **options.pruner_source)
    elif options.recipe:
        pruner = next(pruners([options.recipe], []))[1]
    if pruner is not None:
        pruner.with_budgets(options.retention, options.threshold)
    elif options.retention is not None or options.threshold is not None:
        raise GlimpseError("Expected `--pruner` or `--recipe` with `--retention` and `--threshold`: nothing is pruned.")
    return pruner


def model_of(options: Any) -> PrunedVLM:
    """The model that a parsed command line asks for, with its pruner.

    Raises:
        GlimpseError: as :func:`pruner_of`, and where the model cannot be loaded.
    """
    pruner = pruner_of(options)
    backbone = backbone_of(options)
    model = PrunedVLM(backbone, pruner)
    model.requires_grad_(False).eval()
    if pruner is not None:
        pruner.to(backbone.model.dtype)
    return model


def _named(stage: Any) -> str:
    return f"{type(stage.scorer).__name__} after layer {stage.after_layer}"
