"""The sweep: every variant on every batch size and number of visual tokens, round by round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from glimpse_lightning.bench import figures, trace
from glimpse_lightning.bench.inputs import make_inputs
from glimpse_lightning.bench.settings import Settings
from glimpse_lightning.bench.theory import Case
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.latency.clock import Clock
from glimpse_lightning.latency.measure import HF, Sizes, Variant, decoder_seconds, sizes, times
from glimpse_lightning.latency.phases import SCORING

Say = Callable[[str], None]


def decoder_bytes(variant: Variant) -> int:
    """Weights that a decoding step reads: the decoder's layers, its norm and the head."""
    backbone = variant.backbone
    modules = (backbone.layers, backbone.decoder.norm, backbone.lm_head)
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def case_of(variant: Variant, batch: int, visual: int, text: int, stages: Sequence[StageTokens]) -> Case:
    """The theory of ``stages`` of the variant's model on a batch of such prompts."""
    backbone = variant.backbone
    vocabulary, element = backbone.text_config.vocab_size, backbone.model.dtype.itemsize
    glimpse, last = (0, -1) if variant.pruner is None else variant.pruner.riding_glimpse()
    return Case(backbone.facts, batch, visual, text, stages, vocabulary, element, glimpse, last)


def rounds(
    variants: Sequence[Variant],
    inputs: dict[str, Any],
    questions: list[str],
    settings: Settings,
    clock: Clock,
    lengths: Sequence[int],
) -> tuple[dict[str, list[dict[str, float]]], dict[int, tuple[float, float]]]:
    """Passes of each variant by name: warm-up, then ``repetitions`` rounds; of each of ``lengths``, the median seconds
    of Hugging Face's decoder on prompts of that many tokens, and of the head after it.

    Each round runs every variant once, beginning with another one, so that other load on the machine affects all alike.
    """
    passes: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in variants}
    short: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    for number in range(-settings.warmup, settings.repetitions):
        start = number % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            one = times(variant, inputs, questions, settings.new_tokens, clock)
            if number >= 0:
                passes[variant.name].append(one)
        for length in lengths:
            seconds = decoder_seconds(variants[0].backbone, len(questions), length, clock)
            if number >= 0:
                short[length].append(seconds)
    medians = {n: (median(each[0] for each in found), median(each[1] for each in found)) for n, found in short.items()}
    return passes, medians


def sweep(settings: Settings, variants: Sequence[Variant], say: Say) -> Iterator[dict[str, Any]]:
    """One group of figures for each batch size and number of visual tokens; see docs/bench.md for its fields."""
    for visual in settings.visual_tokens:
        for batch in settings.batch_sizes:
            yield group_of(settings, batch, visual, partial(_group, settings, variants, say))


def group_of(
    settings: Settings, batch: int, visual: int, measure: Callable[[int, int], dict[str, Any]]
) -> dict[str, Any]:
    """Figures that ``measure(batch, visual)`` returns, or the reason why such prompts are left out."""
    group = {"batch": batch, "visual_tokens": visual, "text_tokens": settings.text_tokens}
    most = settings.max_prompt_tokens
    if most is not None and batch * (visual + settings.text_tokens) > most:
        return {**group, "left_out": f"more than max_prompt_tokens = {most}"}
    try:
        found = measure(batch, visual)
    except torch.OutOfMemoryError:
        found = {"left_out": "out of memory"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {**group, **found}


def _group(settings: Settings, variants: Sequence[Variant], say: Say, batch: int, visual: int) -> dict[str, Any]:
    say(f"batch {batch}, {visual} visual tokens: {len(variants)} variants")
    backbone = variants[0].backbone
    inputs = make_inputs(backbone, batch, visual, settings.text_tokens)
    with torch.no_grad():
        prompt = backbone.embed(inputs)
    visual, columns = int(prompt.visual.sum()) // batch, prompt.visual.shape[1]
    del prompt
    questions = [""] * batch
    counts = {variant.name: sizes(variant, inputs, questions, settings.new_tokens) for variant in variants}
    plain = case_of(variants[0], batch, visual, columns - visual, [])
    cases = {one.name: case_of(one, batch, visual, columns - visual, counts[one.name].stages) for one in variants}
    lengths = sorted({n for case in cases.values() for n in case.prompt_layers} - {columns})
    clock = Clock(backbone.model.device, settings.clock)
    passes, short = rounds(variants, inputs, questions, settings, clock, lengths)
    seen = {name: figures.observed(found, batch, settings.new_tokens) for name, found in passes.items()}
    hf = {name: figures.figure(values)["median"] for name, values in seen[HF].items()}
    rows = []
    for variant in variants:
        mine, case = counts[variant.name], cases[variant.name]
        theory = figures.expected(case, plain, mine, hf, decoder_bytes(variant), settings.new_tokens)
        is_hf = variant.name == HF  # the others' theory starts from its times
        measured = {
            name: figures.figure(values, *(() if is_hf else (theory[name], seen[HF][name])))
            for name, values in seen[variant.name].items()
        }
        if mine.stages:
            for name, value in figures.attainable(case, short, hf["prefill"], theory[SCORING]).items():
                measured[name] |= {"attainable": value, "to_attainable": measured[name]["median"] / value}
        single = {name: figures.figure([value], theory.get(name)) for name, value in figures.counted(mine).items()}
        rows.append(
            {
                "name": variant.name, "after_layer": variant.after_layer, "retention": variant.retention,
                "kept": [stage.left for stage in mine.stages], "figures": {**measured, **single},
                "logits_difference_to_hf": _difference(mine, counts[HF]),
                **_trace(settings, variant, inputs, questions),
            }
        )  # fmt: skip
    return {"visual_tokens": visual, "text_tokens": columns - visual, "variants": rows}


def _trace(settings: Settings, variant: Variant, inputs: dict[str, Any], questions: list[str]) -> dict[str, Any]:
    if not settings.trace:
        return {}
    with torch.no_grad():
        found = trace.summary(lambda: variant.prefill(inputs, questions), variant.backbone.model.device)
    return {"trace": found}


def _difference(mine: Sizes, hf: Sizes) -> float:
    """Largest absolute difference of the first token's logits."""
    return float((mine.logits.float() - hf.logits.float()).abs().max())
