"""GlimpsePrune's own protocol (arXiv 2508.01548, efficiency table): prefill cost, KV length and peak memory on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.utils.data import Dataset

from glimpse_lightning.bench import figures
from glimpse_lightning.bench.settings import Settings
from glimpse_lightning.bench.sweep import Say, case_of, decoder_bytes
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.open_file import READERS, open_file
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.latency.clock import Clock
from glimpse_lightning.latency.measure import HF, Variant, sizes, times
from glimpse_lightning.runtime.errors import GlimpseError

GLYPHS = "glyph_vqa"


def load(name: str, size: int) -> Dataset[Sample]:
    """The test split of ``glyph_vqa``, or a file of questions: JSONL, JSON, CSV, TSV or Parquet.

    Raises:
        GlimpseError: where ``name`` is neither.
    """
    if name == GLYPHS:
        return GlyphVQA("test", size)
    if Path(name).is_dir():
        raise GlimpseError(
            f"Expected `--data` to be {GLYPHS} or a file of questions, but {name!r} is a folder. Name the file in it; "
            'of images without questions make a JSONL with a line for each, {"image": "one.jpg", "question": "..."}: '
            "no answers are read."
        )
    if not Path(name).is_file():
        raise GlimpseError(f"Expected `--data` to be {GLYPHS} or a file of questions, but there is no file {name!r}.")
    if (found := open_file(name)) is None:
        raise GlimpseError(f"{name}: expected a file of questions, its name ending in one of {', '.join(READERS)}.")
    return found


def usable(dataset: Any, number: int, name: str) -> tuple[list[Sample], list[str]]:
    """The first questions whose images can be read, and what is said of those before them that cannot.

    Raises:
        GlimpseError: where there is none.
    """
    samples: list[Sample] = []
    skipped: list[str] = []
    for index in range(len(dataset)):
        if len(samples) == number:
            break
        try:
            samples.append(dataset[index])
        except GlimpseError as error:
            skipped.append(str(error))
    if not samples:
        raise GlimpseError(f"{name}: none of the questions can be asked; the first: {skipped[0]}")
    return samples, skipped


@torch.no_grad()
def run(settings: Settings, variants: Sequence[Variant], name: str, say: Say) -> dict[str, Any]:
    """Figures over the first ``samples`` questions, one prompt at a time; each question is one round of all variants.

    Visual tokens, and those that a variant keeps after each of its stages (``kept``), are means over the questions.
    Theoretical values are per question, from Hugging Face's times of the same question; their median is shown.
    """
    samples, skipped = usable(load(name, settings.samples), settings.samples, name)
    for message in skipped:
        say(f"left out: {message}")
    count = len(samples)
    backbone, new = variants[0].backbone, settings.new_tokens
    clock = Clock(backbone.model.device, settings.clock)
    seen: dict[str, dict[str, list[float]]] = {variant.name: {} for variant in variants}
    left: dict[str, list[list[int]]] = {variant.name: [] for variant in variants}
    whole: list[int] = []
    theory: dict[str, dict[str, list[float]]] = {variant.name: {} for variant in variants}
    for index in range(-settings.warmup, count):
        sample = replace(samples[max(index, 0)], answers=[""])  # answers may be missing, and none is read
        inputs = {key: value.to(clock.device) for key, value in backbone.collate([sample]).inputs.items()}
        start = index % len(variants)
        order = [*variants[start:], *variants[:start]]
        passes = {one.name: times(one, inputs, [sample.question], new, clock) for one in order}
        if index < 0:
            continue
        prompt = backbone.embed(inputs)
        visual, columns = int(prompt.visual.sum()), int(prompt.mask.sum())
        del prompt
        whole.append(visual)
        plain = case_of(variants[0], 1, visual, columns - visual, [])
        for one in variants:
            mine = sizes(one, inputs, [sample.question], new)
            left[one.name].append([stage.left for stage in mine.stages])
            case = case_of(one, 1, visual, columns - visual, mine.stages)
            found = figures.observed([passes[one.name]], 1, new)
            for key, values in found.items():
                seen[one.name].setdefault(key, []).extend(values)
            for key, value in figures.counted(mine).items():
                seen[one.name].setdefault(key, []).append(value)
            wanted = figures.expected(case, plain, mine, passes[HF], decoder_bytes(one), new)
            for key, value in wanted.items():
                theory[one.name].setdefault(key, []).append(value)
        if (index + 1) % 10 == 0:
            say(f"{index + 1} of {count} questions")
    rows = []
    for one in variants:
        found = _figures(seen[one.name], theory[one.name], None if one.name == HF else seen[HF])
        kept = [fmean(counts) for counts in zip(*left[one.name], strict=True)]
        rows.append(
            {
                "name": one.name, "after_layer": one.after_layer, "retention": one.retention, "kept": kept,
                "figures": found,
            }
        )  # fmt: skip
    left_out = {"skipped": skipped} if skipped else {}
    return {"data": name, "samples": count, "batch": 1, "visual_tokens": fmean(whole), "variants": rows, **left_out}


def _figures(
    seen: dict[str, list[float]], theory: dict[str, list[float]], hf: dict[str, list[float]] | None
) -> dict[str, Any]:
    """``vs_hf`` is the median over questions of the ratio to Hugging Face's own forward on the same question."""
    out = {}
    for name, values in seen.items():
        timed = name in figures.TIMES or name in figures.SPEEDS
        known = name in theory and not (timed and hf is None)
        wanted = figures.figure(theory[name])["median"] if known else None
        out[name] = figures.figure(values, wanted, None if hf is None else hf[name])
    return out
