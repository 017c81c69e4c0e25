"""One pass of one variant: its times, FLOPs and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessorList

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.core.segments import segment_count
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.latency.clock import Clock, TokenClock
from glimpse_lightning.latency.flops import counter
from glimpse_lightning.latency.memory import peak_bytes
from glimpse_lightning.latency.phases import AFTER, BEFORE, SCORING, PhaseRecorder
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.pruner.pruner import Pruner

HF, UNPRUNED = "hf", "unpruned"


@dataclass(frozen=True)
class Variant:
    """A model to measure; all variants run over one Hugging Face model.

    Attributes:
        name: ``hf``, ``unpruned`` or the pruner's name.
        backbone: the model.
        model: the pruned model; ``None``: Hugging Face's own forward.
        after_layer, retention: the pruner's, where the settings define one.
        cache: ``cache_implementation`` of ``generate``; ``None``: a growing cache.
    """

    name: str
    backbone: Backbone
    model: PrunedVLM | None = None
    after_layer: int | None = None
    retention: float | None = None
    cache: str | None = None

    @property
    def pruner(self) -> Pruner | None:
        return None if self.model is None else self.model.pruner

    def recorder(self, stamp: Any) -> PhaseRecorder[Any]:
        """A recorder of phases for one pass."""
        return PhaseRecorder(self.backbone, self.pruner, stamp)

    def prefill(self, inputs: Mapping[str, Any], questions: list[str]) -> tuple[Tensor, Cache, Any]:
        """``(logits [B, vocab], cache, PrefillOutput or None)``."""
        if self.model is not None:
            out = self.model.prefill(questions=questions, **inputs)
            return out.logits, out.cache, out
        plain = self.backbone.model(**self.backbone.hf_inputs(inputs), logits_to_keep=1, use_cache=True)
        return plain.logits[:, -1], plain.past_key_values, None

    def generate(self, inputs: Mapping[str, Any], questions: list[str], new_tokens: int, **more: Any) -> None:
        """Generate exactly ``new_tokens`` tokens, greedily."""
        length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        if self.cache is not None:
            length["cache_implementation"] = self.cache
        if self.model is not None:
            self.model.generate(questions=questions, **inputs, **length, **more)
        else:
            self.backbone.model.generate(**self.backbone.hf_inputs(inputs), **length, **more)


@dataclass(frozen=True)
class Sizes:
    """FLOPs and memory of a pass.

    Attributes:
        flops: FLOPs by phase.
        kv_bytes: bytes of the cache object after prefill.
        kv_length: tokens of a prompt in the cache, averaged over the layers.
        peak: most bytes above the weights, over a whole generation.
        stages: visual tokens left after each prune stage, of the prompt that keeps most.
        logits: ``[B, vocab]`` at the last prompt position.
    """

    flops: dict[str, float]
    kv_bytes: int
    kv_length: float
    peak: int
    stages: list[StageTokens]
    logits: Tensor


@torch.no_grad()
def sizes(variant: Variant, inputs: Mapping[str, Any], questions: list[str], new_tokens: int) -> Sizes:
    """Count one prefill's FLOPs and cache, and one generation's peak memory."""
    flops = counter()
    recorder = variant.recorder(flops.get_total_flops)
    with flops, recorder.recording():
        logits, cache, out = variant.prefill(inputs, questions)
    batch = len(logits)
    stages = []
    if variant.pruner is not None and out is not None:
        alive = torch.ones_like(out.tokens.item, dtype=torch.bool)
        for stage, keep in zip(variant.pruner.stages, out.keep, strict=True):
            alive = alive & keep
            left = segment_count(out.tokens.sample, batch, alive).max()  # which all are padded to
            stages.append(StageTokens(stage.after_layer, int(left), stage.early_kv))
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    found = Sizes(
        flops=recorder.spent(lambda begin, end: float(end - begin)),
        kv_bytes=sum(tensor.nbytes for tensor in held),
        kv_length=sum(tensor.shape[2] for tensor in held) / len(held),
        peak=0,
        stages=stages,
        logits=logits,
    )
    del cache, out, held
    peak = peak_bytes(lambda: variant.generate(inputs, questions, new_tokens), variant.backbone.model.device)
    return Sizes(**{**vars(found), "peak": peak})


def times(
    variant: Variant, inputs: Mapping[str, Any], questions: list[str], new_tokens: int, clock: Clock
) -> dict[str, float]:
    """Seconds of one generation: each phase, ``prefill`` (all but vision), ``ttft``, ``tpot``, ``generation``.

    ``ttft`` reaches from the call of ``generate`` to the first token's logits, ``tpot`` is the mean from one token's
    logits to the next one's. The device is waited for before and after, not in between.
    """
    recorder = variant.recorder(clock.stamp)
    tokens = TokenClock(clock)
    clock.synchronise()
    begin = clock.stamp()
    with recorder.recording():
        variant.generate(inputs, questions, new_tokens, logits_processor=LogitsProcessorList([tokens]))
    clock.synchronise()
    spent = recorder.spent(clock.seconds)
    first, last = tokens.stamps[0], tokens.stamps[-1]
    return {
        **spent,
        "prefill": spent[BEFORE] + spent[SCORING] + spent[AFTER],
        "ttft": clock.seconds(begin, first),
        "tpot": clock.seconds(first, last) / (len(tokens.stamps) - 1),
        "generation": clock.seconds(begin, last),
    }


@torch.no_grad()
def decoder_seconds(backbone: Backbone, batch: int, tokens: int, clock: Clock) -> tuple[float, float]:
    """Seconds of Hugging Face's own decoder, and of the head after it, on ``batch`` prompts of ``tokens`` tokens."""
    width, dtype, device = backbone.facts.hidden_size, backbone.model.dtype, backbone.model.device
    states = torch.randn(batch, tokens, width, dtype=dtype, device=device)
    clock.synchronise()
    begin = clock.stamp()
    hidden = backbone.decoder(inputs_embeds=states, use_cache=True).last_hidden_state[:, -1]
    middle = clock.stamp()
    backbone.lm_head(hidden)
    end = clock.stamp()
    clock.synchronise()
    return clock.seconds(begin, middle), clock.seconds(middle, end)
