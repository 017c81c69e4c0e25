"""Measured values next to the theoretical ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from glimpse_lightning.bench.theory import Case
from glimpse_lightning.evaluation.intervals import bootstrap
from glimpse_lightning.latency.measure import Sizes
from glimpse_lightning.latency.phases import AFTER, BEFORE, PHASES, PREPARATION, SCORING, VISION

TIMES = (*PHASES, "prefill", "ttft", "tpot", "generation")
SPEEDS = ("decode_speed", "speed")


def observed(passes: Sequence[Mapping[str, float]], batch: int, new_tokens: int) -> dict[str, list[float]]:
    """Times by name, and ``decode_speed`` and ``speed`` (tokens/s while decoding, and over a whole generation)."""
    found = {name: [one[name] for one in passes] for name in TIMES}
    found["decode_speed"] = [batch / one["tpot"] for one in passes]
    found["speed"] = [batch * new_tokens / one["generation"] for one in passes]
    return found


def expected(
    case: Case, plain: Case, found: Sizes, hf: Mapping[str, float], weights: int, new: int
) -> dict[str, float]:
    """Theoretical values of a variant, from those that Hugging Face's own forward reaches on the same machine.

    Times of the decoder scale with FLOPs (``Case.prefill_flops``; the scorer's own as counted), those of a decoding
    step with the bytes that it reads (``Case.decode_bytes``). All other times are Hugging Face's.

    Args:
        case, plain: the variant's case, and the unpruned one.
        found: counted sizes of the variant.
        hf: measured times of Hugging Face's forward.
        weights: bytes of the decoder's layers and head.
        new: number of generated tokens.
    """
    before, after = case.prefill_flops()
    full = sum(plain.prefill_flops())
    each = hf["prefill"] / full
    prefill = (before + after + found.flops[SCORING]) * each
    tpot = hf["tpot"] * case.decode_bytes(weights, new / 2) / plain.decode_bytes(weights, new / 2)
    ttft = hf["ttft"] - hf["prefill"] + prefill
    generation = ttft + tpot * (new - 1)
    return {
        PREPARATION: hf[PREPARATION], VISION: hf[VISION],
        BEFORE: before * each, SCORING: found.flops[SCORING] * each, AFTER: after * each,
        "prefill": prefill, "ttft": ttft, "tpot": tpot, "generation": generation,
        "decode_speed": case.batch / tpot, "speed": case.batch * new / generation,
        "prefill_flops": before + after, "kv_bytes": case.kv_bytes(), "kv_length": case.cached,
        "peak_bytes": case.peak_bytes(),
    }  # fmt: skip


def attainable(case: Case, short: Mapping[int, tuple[float, float]], hf: float, scoring: float) -> dict[str, float]:
    """Seconds of the decoder (after K, and in all) if layers run as fast as Hugging Face's own on as many tokens.

    Theory assumes that a FLOP takes as long in a short prompt as in a long one. Few rows cannot fill the arithmetic
    units, so a FLOP takes longer there. These seconds include that loss, and the remaining difference is due to this
    package.

    Args:
        short: measured seconds of Hugging Face's decoder, and of its head, by number of tokens of a shorter prompt.
        hf: seconds of both on the whole prompt.
        scoring: theoretical seconds of the scorer.
    """
    head = median(head for _, head in short.values()) if short else 0.0
    whole = case.visual + case.text
    each = [
        (hf - head if tokens == whole else short[tokens][0]) / case.facts.num_layers for tokens in case.prompt_layers
    ]
    split = case.stages[0].after_layer + 1
    return {"prefill": sum(each) + head + scoring, AFTER: sum(each[split:]) + head}


def counted(found: Sizes) -> dict[str, float]:
    """Counted figures; ``prefill_flops`` are the decoder's, the scorer's are ``scoring_flops``."""
    return {
        "prefill_flops": found.flops[BEFORE] + found.flops[AFTER], "scoring_flops": found.flops[SCORING],
        "vision_flops": found.flops[PREPARATION] + found.flops[VISION],
        "kv_bytes": found.kv_bytes, "kv_length": found.kv_length,
        "peak_bytes": found.peak,
    }  # fmt: skip


def figure(values: Sequence[float], theory: float | None = None, hf: Sequence[float] | None = None) -> dict[str, Any]:
    """Median, p10, p90 and number of values; the theoretical value and the ratio to it; the paired ratio to HF.

    ``vs_hf`` is the median over rounds of (value / Hugging Face's value in the same round), with its 95 % percentile
    bootstrap interval.
    """
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    out: dict[str, Any] = {"median": median, "p10": p10, "p90": p90, "n": len(values)}
    if theory is not None:
        out |= {"theory": theory, "to_theory": median / theory if theory else None}
    if hf is not None and all(hf):
        ratio = bootstrap([a / b for a, b in zip(values, hf, strict=True)], of="median")
        out["vs_hf"] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    return out
