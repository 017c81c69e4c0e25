"""The settings of a benchmark, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glimpse_lightning.bench.training_theory import STEPS
from glimpse_lightning.cli.settings_file import expecting, read_settings
from glimpse_lightning.model.pruned_vlm import CACHES
from glimpse_lightning.runtime.source import FIELDS

CLOCKS = ("wall", "process")


@dataclass(frozen=True)
class Settings:
    """A benchmark: a model, and the grid of cases on which it is measured.

    Attributes:
        model: any name that ``load_backbone`` takes; ``random:<preset>`` needs no download.
        dtype: data type of the weights, plain and pruned model alike; ``None`` and ``auto`` as in ``load_backbone``.
        attn_implementation: attention kernel of both.
        processor: settings of the image processor by name, as in ``load_backbone``.
        source: ``revision``, ``cache_dir`` and ``local_files_only`` of the model.
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is a device.
        scorer: class in ``glimpse_lightning.scorers``, with fresh weights (times do not depend on their values).
        scorer_args: its arguments.
        pruner: folder or hub id of a saved pruner, measured in place of ``scorer``, ``after_layers`` and ``retention``.
        pruner_source: ``revision``, ``cache_dir`` and ``local_files_only`` of the saved pruner.
        recipes: recipes whose pruners are measured in place of ``scorer`` and ``after_layers``, each with all shares of
            ``retention`` where its budget is ``vars.retention``.
        batch_sizes: numbers of prompts in a batch.
        visual_tokens: visual tokens of each prompt; families with a fixed grid take the nearest number of whole images.
        text_tokens: all other tokens of each prompt.
        after_layers: K, the last layer that sees all tokens, counted from 0; -1 = before layer 0.
        retention: shares of visual tokens kept.
        new_tokens: tokens generated per pass, at least 2.
        training: kinds of training step (``mask``, ``mask_with_answers``, ``kl``) to measure in place of inference;
            ``scorer`` must then have a glimpse token, and ``retention`` is not used.
        answer_tokens: tokens of each prompt's answer, in training steps.
        cache_implementation: argument of ``generate``, for all variants alike: ``dynamic`` or ``static``; ``None``: the
            model's default. With ``static``, Hugging Face compiles decoding on CUDA.
        trace: whether to list, for every variant of a group, the operators that take most of its prefill's time.
        warmup, repetitions: passes of every variant, untimed and timed.
        max_prompt_tokens: cases whose batch holds more prompt tokens are left out; ``None``: no limit.
        samples: number of questions that ``--data`` measures.
        threads: torch's threads on the CPU; ``None``: torch's default.
        clock: clock of the CPU: ``wall``, or ``process``, the seconds that this process computed, for a machine that
            others use too. With ``threads: 1`` that is the wall time of a quiet machine.
    """

    model: str
    dtype: str | None = None
    attn_implementation: str = "sdpa"
    processor: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    scorer: str = "VIP"
    scorer_args: Mapping[str, Any] = field(default_factory=dict)
    pruner: str | None = None
    pruner_source: Mapping[str, Any] = field(default_factory=dict)
    recipes: list[str] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    visual_tokens: list[int] = field(default_factory=lambda: [576])
    text_tokens: int = 64
    after_layers: list[int] = field(default_factory=lambda: [1])
    retention: list[float] = field(default_factory=lambda: [0.11])
    new_tokens: int = 8
    training: list[str] = field(default_factory=list)
    answer_tokens: int = 16
    cache_implementation: str | None = None
    trace: bool = False
    warmup: int = 3
    repetitions: int = 20
    max_prompt_tokens: int | None = None
    samples: int = 100
    threads: int | None = None
    clock: str = "wall"

    def with_flags(self, flags: Mapping[str, Any]) -> Settings:
        """These settings under command-line flags; a flag of ``None`` changes nothing.

        Another scorer has its own arguments: ``scorer_args`` of the settings belong to the settings' scorer.

        Raises:
            GlimpseError: for an impossible value.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        if given.get("scorer", self.scorer) != self.scorer:
            given = {"scorer_args": {}} | given
        return _checked(replace(self, **given), "flags")


def read(path: Path) -> Settings:
    """Read a benchmark.

    Raises:
        GlimpseError: where it is no YAML mapping, or has an unknown key or an impossible value.
    """
    names = {"backbone": "model"}  # as all other recipes call it
    values = read_settings(path, Settings, {"model"}, "`model`, the backbone to measure", names)
    return _checked(Settings(**values), str(path))


def _checked(settings: Settings, where: str) -> Settings:
    expect = expecting(settings, where)
    for key in ("model", "attn_implementation", "device", "scorer"):
        expect(key, "a name", isinstance(getattr(settings, key), str))
    expect("dtype", "a name, or null", settings.dtype is None or isinstance(settings.dtype, str))
    for key in ("batch_sizes", "visual_tokens"):
        expect(key, "a list of numbers of at least 1", _all(getattr(settings, key), int, 1))
    expect("after_layers", "a list of layers, each -1 or more", _all(settings.after_layers, int, -1))
    expect("retention", "a list of shares in [0, 1]", _all(settings.retention, (int, float), 0, 1))
    known = isinstance(settings.training, list) and set(settings.training) <= set(STEPS)
    expect("training", f"a list of {', '.join(STEPS)}", known)
    expect("pruner", "left out with `training`, which trains fresh ones", not settings.training or not settings.pruner)
    names = isinstance(settings.recipes, list) and all(isinstance(name, str) for name in settings.recipes)
    expect("recipes", "a list of recipes, by name or file", names)
    other = settings.training or settings.pruner
    expect("recipes", "left out with `training` and with `pruner`", not (settings.recipes and other))
    for key in ("scorer_args", "processor"):
        expect(key, "a mapping of names to values", isinstance(getattr(settings, key), Mapping))
    for key in ("source", "pruner_source"):
        value = getattr(settings, key)
        expect(key, f"a mapping with {', '.join(FIELDS)}", isinstance(value, Mapping) and set(value) <= set(FIELDS))
    expect("cache_implementation", ", ".join(map(str, CACHES)), settings.cache_implementation in CACHES)
    expect("trace", "true or false", isinstance(settings.trace, bool))
    expect("clock", " or ".join(CLOCKS), settings.clock in CLOCKS)
    one_thread = settings.clock == "wall" or settings.threads == 1
    expect("threads", "1 with `clock: process`, which adds up the threads' seconds", one_thread)
    lowest = {"text_tokens": 1, "new_tokens": 2, "answer_tokens": 1, "warmup": 0, "repetitions": 1, "samples": 1}
    for key, least in lowest.items():
        expect(key, f"at least {least}", _all([getattr(settings, key)], int, least))
    for key in ("max_prompt_tokens", "threads"):
        value = getattr(settings, key)
        expect(key, "at least 1, or null", value is None or _all([value], int, 1))
    return settings


def _all(values: Any, kind: Any, low: float, high: float = float("inf")) -> bool:
    """Whether ``values`` is a list, not empty, of numbers of a kind between two bounds."""
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high for v in values)
