"""Replay: given answers once more after the pruned prompt that they were sampled from, differentiably.

Suffixes: ``B`` prompts, ``R`` answers (``R / B`` in a row for each prompt), ``T`` answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prefill import PrefillOutput, run_prefill
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import PromptCache, fork_cache
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.streams import run_continuation
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.reducers.drop import Drop

if TYPE_CHECKING:
    from glimpse_lightning.pruner.pruner import Pruner


@dataclass
class ReplayOutput:
    """Predictions of given answers.

    Attributes:
        logits: ``[R, T, vocab]``; entry ``t`` predicts token ``t`` of the answer.
        prefill: prefill of the prompts, with gradients where something in it is trained.
    """

    logits: Tensor
    prefill: PrefillOutput


def replay(
    decoder: Decoder,
    pruner: Pruner | None,
    request: PrefillRequest,
    ids: Tensor,
    mask: Tensor,
    from_embeddings: bool = False,
) -> ReplayOutput:
    """Predictions of the answers' tokens, as ``generate`` makes them on the compacted cache.

    The prompt is pruned after the stages' layers, and the answers read the pruned keys and values of all layers.
    Gradients reach all trainable weights: the decoder's (also through the prompt), and the scorer's through scores.

    Args:
        request: the prompts. With ``scored`` false they are scored only where a reducer reads scores.
        ids: ``[R, T]`` tokens of the answers; those of a prompt's first copy come first.
        mask: ``[R, T]`` false at padding (on the right).
        from_embeddings: whether tokens from the second on are predicted as in GlimpsePrune's stage 2 (arXiv
            2508.01548), after a prompt that was pruned before layer 0. No layer then sees a dropped token, so it is
            not the forward that sampled the answers. False by default.
    """
    stages = [] if pruner is None else pruner.stages
    scored = request.scored or any(not isinstance(stage.reducer, Drop) for stage in stages)
    out = run_prefill(decoder, pruner, replace(request, scored=scored))
    cache = out.cache
    if from_embeddings:
        cache = _prefix_from_embeddings(decoder, request.repeated().prompt, out.kept())
    return ReplayOutput(answer_logits(decoder, out, cache, ids, mask), out)


def answer_logits(decoder: Decoder, out: PrefillOutput, cache: PromptCache, ids: Tensor, mask: Tensor) -> Tensor:
    """``[R, T, vocab]`` predictions of answers after a prompt; entry 0 is the prompt's own."""
    repeats = len(ids) // len(out.logits)
    first = out.logits.repeat_interleave(repeats, 0)[:, None]
    if ids.shape[1] == 1:
        return first
    rows = decoder.model.get_input_embeddings()(ids[:, :-1])
    hidden = run_continuation(decoder, fork_cache(cache, repeats), rows, mask[:, :-1].bool())
    return torch.cat([first, decoder.logits(hidden)], 1)


def _prefix_from_embeddings(decoder: Decoder, prompt: Prompt, keep: Tensor) -> PromptCache:
    """Keys and values of the prompt where only tokens of ``keep [V]`` ever enter the decoder."""
    trunk = Trunk.start(decoder, prompt)
    trunk.compact(keep, None)
    for layer in range(len(decoder.layers)):
        trunk.run_layer(layer)
    return trunk.cache
