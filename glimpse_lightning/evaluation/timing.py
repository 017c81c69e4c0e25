"""What a question costs the pruned model and Hugging Face's own, in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.intervals import bootstrap
from glimpse_lightning.latency.clock import Clock
from glimpse_lightning.latency.measure import HF, Variant, sizes, times
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.resolution import ResolutionCut

WARM_UP = 2
NEW_TOKENS = 8
"""Tokens of every answer, whatever the model would say: so that answers of one length are compared."""
COSTS = {
    "ttft": ("time to first token", 1e3, "ms"),
    "tpot": ("time per token", 1e3, "ms"),
    "kv_bytes": ("KV cache", 2**-20, "MiB"),
    "peak_bytes": ("peak memory", 2**-20, "MiB"),
}
"""Name, and factor and unit in which it is shown, of each cost."""


@torch.no_grad()
def costs(model: PrunedVLM, samples: Sequence[Sample], resolution: ResolutionCut | None = None) -> dict[str, Any]:
    """Costs of answering questions one at a time, next to those of Hugging Face's own model on the whole images.

    Both answer each question once, one after the other, the first of them in turns, so that other load on the machine
    affects both alike. Of each cost, in seconds or bytes: medians over the questions (``pruned``, ``full``), and the
    median of the questions' ratios with its 95 % bootstrap interval (``ratio``, ``low``, ``high``).

    * ``ttft``: from the call of ``generate`` to the first token's logits, the vision tower included; preprocessing of
      the image is not.
    * ``tpot``: from one token's logits to the next one's, mean over an answer of 8 tokens.
    * ``kv_bytes``: keys and values after the prefill. ``peak_bytes``: most memory above the weights.

    Args:
        model: the pruned model.
        samples: the questions; at least one.
        resolution: cut of the images for ``model``.
    """
    backbone = model.backbone
    plain, pruned = Variant(HF, backbone), Variant("pruned", backbone, model)
    clock = Clock(model.device)
    found: dict[str, dict[str, list[float]]] = {name: {"pruned": [], "full": []} for name in COSTS}
    with _as_loaded(backbone.model):
        _measure(samples, resolution, plain, pruned, clock, found)
    return {"questions": len(samples), "new_tokens": NEW_TOKENS} | {
        name: _compared(values["pruned"], values["full"]) for name, values in found.items()
    }


@contextmanager
def _as_loaded(model: nn.Module) -> Iterator[None]:
    """Weights that want a gradient, as Hugging Face loads them, and as anyone has them who measures its model.

    A module freezes them, and torch's product of a slice of states in bfloat16 copies a frozen weight on a CPU: a head
    of 152,064 words and 512 channels then takes 1.5 s and 156 MB for a token in place of 0.05 s and nothing.
    """
    frozen = [weight for weight in model.parameters() if not weight.requires_grad and weight.is_floating_point()]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _measure(
    samples: Sequence[Sample],
    resolution: ResolutionCut | None,
    plain: Variant,
    pruned: Variant,
    clock: Clock,
    found: dict[str, dict[str, list[float]]],
) -> None:
    """Add the costs of both variants on each question to ``found``."""
    backbone = plain.backbone
    for number in range(-WARM_UP, len(samples)):
        sample = replace(samples[max(number, 0)], answers=[""])
        batch = backbone.collate([sample])
        seen = batch if resolution is None else resolution.applied(batch, backbone)
        both = [("pruned", pruned, seen), ("full", plain, batch)]
        for name, variant, asked in both if number % 2 else both[::-1]:
            inputs = {key: value.to(clock.device) for key, value in asked.inputs.items()}
            spent = times(variant, inputs, [sample.question], NEW_TOKENS, clock)
            if number < 0:
                continue
            size = sizes(variant, inputs, [sample.question], NEW_TOKENS)
            one = {"ttft": spent["ttft"], "tpot": spent["tpot"], "kv_bytes": size.kv_bytes, "peak_bytes": size.peak}
            for key, value in one.items():
                found[key][name].append(value)


def _compared(pruned: Sequence[float], full: Sequence[float]) -> dict[str, float]:
    ratio = bootstrap([one / other for one, other in zip(pruned, full, strict=True)], of="median")
    return {
        "pruned": median(pruned), "full": median(full), "ratio": ratio.value, "low": ratio.low, "high": ratio.high
    }  # fmt: skip
