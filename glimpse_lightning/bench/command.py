"""The command line of ``bench``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.embedded import EMBEDDED
from glimpse_lightning.backbones.presets import PREFIX, check_has_processor
from glimpse_lightning.bench import dataset, report, training
from glimpse_lightning.bench.plots import write_plot
from glimpse_lightning.bench.settings import Settings, read
from glimpse_lightning.bench.sweep import sweep
from glimpse_lightning.bench.variants import backbone_of, check_layers, variants
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.cli.packaged_recipes import recipe_file
from glimpse_lightning.latency.memory import CPU_WAY, CUDA_WAY
from glimpse_lightning.runtime import machine
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.quiet import quieten
from glimpse_lightning.runtime.whole_files import write_text

FLAGS = {
    "model": str, "dtype": str, "attn_implementation": str, "device": str, "scorer": str, "pruner": str,
    "batch_sizes": list, "visual_tokens": list, "after_layers": list, "retention": list, "text_tokens": int,
    "new_tokens": int, "training": list, "answer_tokens": int, "warmup": int, "repetitions": int,
    "max_prompt_tokens": int, "samples": int, "threads": int, "clock": str,
    "cache_implementation": str, "scorer_args": dict, "processor": dict, "source": dict, "pruner_source": dict,
}  # fmt: skip

RANDOM_PROMPTS = (
    "batch_sizes", "visual_tokens", "text_tokens", "repetitions", "max_prompt_tokens", "answer_tokens", "trace",
)  # fmt: skip
"""Flags about random prompts, which ``--data`` replaces."""

YAML: dict[Any, str] = {list: " (YAML list: '[1, 4]')", dict: " (YAML mapping: '{name: value}')"}
"""Form of a flag's value, for the help, by kind."""


def arguments() -> CommandParser:
    """The parser of `bench`'s command line."""
    parser = CommandParser("bench", "Measure plain Hugging Face against pruned models, in one process, round by round.")
    parser.add_argument("--config", required=True, help="the benchmark's YAML, or the name of a packaged one")
    parser.add_argument("--output", default="bench.json", help="JSON to write; Markdown and plot come next to it")
    parser.add_argument(
        "--data",
        help="glyph_vqa or a file of questions (JSONL, CSV, ...): measure whole generations on its questions instead",
    )
    parser.add_argument(
        "--trace", action="store_true", default=None, help="list the operators that take most of a prefill's time"
    )
    parser.add_argument(
        "--recipe", dest="recipes", action="append", metavar="NAME", help="recipe whose pruner is measured; repeatable"
    )
    for name, kind in FLAGS.items():
        text = f"overrules the config's{YAML.get(kind, '')}"
        names = ("--model", "--backbone") if name == "model" else (f"--{name}",)
        parser.add_argument(*names, dest=name, type=yaml.safe_load if kind in YAML else kind, help=text)
    return parser


def run(args: Sequence[str]) -> int:
    """Run a benchmark and write its record; returns the exit status.

    Raises:
        GlimpseError: where a setting is wrong or the model cannot be loaded; nothing is written then.
    """
    options = arguments().parse_args(list(args))
    flags = {name: getattr(options, name) for name in (*FLAGS, "trace", "recipes")}
    settings = read(recipe_file(options.config)).with_flags(flags)
    output = Path(options.output)
    if output.suffix != ".json":
        raise GlimpseError(f"Expected `--output` to end in .json, but got {options.output!r}.")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if options.data is not None and (unread := [name for name in RANDOM_PROMPTS if flags[name] is not None]):
        raise GlimpseError(
            f"Expected no --{', --'.join(unread)} with `--data`, whose questions are measured one by one, each in one "
            "round. `--samples` is their number."
        )
    if options.data is not None and settings.training:
        raise GlimpseError("Expected either `--data` or `training`: training steps are measured on random prompts.")
    if options.data is None and flags["samples"] is not None:
        raise GlimpseError("Expected `--samples` with `--data`, whose questions it counts; rounds are `--repetitions`.")
    if flags["answer_tokens"] is not None and not settings.training:
        raise GlimpseError("Expected `--answer_tokens` with `training`; of a decoding, the length is `--new_tokens`.")
    if options.data is not None:
        check_has_processor(settings.model, ", or leave `--data` out to measure random prompts")
        dataset.load(options.data, 1)  # before the model is loaded
    quieten()
    backbone = backbone_of(settings)
    record = _record(settings, backbone, ["bench", *args])
    for group in _groups(settings, backbone, options.data):
        record["groups"].append(group)
        _write(record, output)  # so that a later failure loses no measurement
    if not settings.training:
        try:
            write_plot(record, output.with_suffix(".png"))
        except GlimpseError as error:
            _say(f"note: {error}")
    print(report.markdown(record).split("## All figures")[0])
    print(f"Written: {output}, {output.with_suffix('.md')}.")
    return 0


def _groups(settings: Settings, backbone: Backbone, data: str | None) -> Iterator[dict[str, Any]]:
    """The measurements that the settings ask for, group by group."""
    if settings.training:
        check_layers(settings, backbone)
        return training.sweep(settings, backbone, _say)
    chosen = variants(settings, backbone)
    if data is not None:
        return iter([dataset.run(settings, chosen, data, _say)])
    return sweep(settings, chosen, _say)


def _record(settings: Settings, backbone: Backbone, args: Sequence[str]) -> dict[str, Any]:
    model = backbone.model
    return {
        "format": 1,
        "command": f"python -m glimpse_lightning {shlex.join(args)}",
        "machine": machine.describe(model.device),
        "model": {
            "name": settings.model,
            "weights": _weights(settings.model),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": settings.attn_implementation,
            **backbone.described(),
        },
        "clock": "CUDA events" if model.device.type == "cuda" else f"{settings.clock} time of the CPU",
        "memory": CUDA_WAY if model.device.type == "cuda" else CPU_WAY,
        "settings": asdict(settings),
        "groups": [],
    }


def _weights(name: str) -> str:
    """Kind of a model's weights; of a folder or hub id only their origin is known, which may hold random ones."""
    return "random" if name.startswith(PREFIX) else "trained" if name in EMBEDDED else f"of {name}"


def _write(record: dict[str, Any], output: Path) -> None:
    write_text(output, json.dumps(record, indent=1) + "\n")
    write_text(output.with_suffix(".md"), report.markdown(record))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
