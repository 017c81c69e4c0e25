"""The cached step after a prompt of which the decoder layers hold different columns.

Hugging Face's own step makes one mask and one rotary embedding for all layers. Where early layers keep tokens that
later ones dropped, or where a stage renumbered positions, each stretch of layers needs its own; the layers themselves
are run as in prefill. ``generate`` stays the decoding loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.engine.prompt_cache import PromptCache, PromptColumns, fork_cache


def decode_step(decoder: Decoder, **kwargs: Any) -> Any:
    """The model's own cached step; ``position_ids`` are those of the new tokens.

    Where layers hold other columns of the prompt, or at other positions, its layers are run one by one.
    """
    cache = kwargs["past_key_values"]
    if isinstance(cache, PromptCache) and not cache.even:
        return step_by_layers(decoder, kwargs["input_ids"], kwargs["attention_mask"], kwargs["position_ids"], cache)
    return decoder.model(**kwargs)


def step_after(decoder: Decoder, out: PrefillOutput, ids: Tensor, cache: PromptCache) -> Any:
    """The cached step of ``ids [B, Q]``, the first tokens after the prompt of ``out``.

    Args:
        cache: keys and values of the prompt, to which those of ``ids`` are added.
    """
    steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return decode_step(
        decoder,
        input_ids=ids,
        attention_mask=torch.cat([out.attention_mask, torch.ones_like(ids)], 1),
        position_ids=out.position_ids[..., -1:] + steps,
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )


def continued(decoder: Decoder, out: PrefillOutput, ids: Tensor) -> PrefillOutput:
    """The prefill of a prompt that goes on with the tokens ``ids [B, Q]``, which see what is left of it.

    Nothing that was dropped comes back, and no stage prunes again. ``out`` stays as it is.
    """
    cache = fork_cache(out.cache)
    step = step_after(decoder, out, ids, cache)
    longer = {id(columns): _followed(columns, ids, out.prompt_keep.shape[1]) for columns in cache.columns}
    cache.columns = [longer[id(columns)] for columns in cache.columns]
    kept = torch.ones_like(ids, dtype=torch.bool)
    last = longer[id(out.cache.columns[-1])]
    return replace(
        out,
        prompt_keep=torch.cat([out.prompt_keep, kept], 1),
        logits=step.logits[:, -1],
        position_ids=last.position_ids,
        attention_mask=last.mask.long(),
        cache=cache,
        hidden=None,
        column=None,
        prompt_ids=None if out.prompt_ids is None else torch.cat([out.prompt_ids, ids], 1),
        prompt_mask=None if out.prompt_mask is None else torch.cat([out.prompt_mask, kept.long()], 1),
    )


def _followed(columns: PromptColumns, ids: Tensor, width: int) -> PromptColumns:
    """Columns with those of text after them, from the ``width``-th of the prompt on."""
    steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return replace(
        columns,
        mask=torch.cat([columns.mask, torch.ones_like(ids, dtype=torch.bool)], 1),
        position_ids=torch.cat([columns.position_ids, columns.last + steps], -1),
        slot=torch.cat([columns.slot, torch.full_like(ids, -1)], 1),
        column=torch.cat([columns.column, (width - 1 + steps).expand_as(ids)], 1),
    )


def step_by_layers(
    decoder: Decoder, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: PromptCache
) -> CausalLMOutputWithPast:
    """Logits ``[B, Q, vocab]`` of ``input_ids [B, Q]``, whose keys and values are added to ``cache``.

    Args:
        attention_mask: ``[B, M + P + Q]``: columns that the last layer holds of the prompt, tokens decoded before, and
            these; ``None`` where nothing is padding.
        position_ids: ``[..., B, Q]`` in the last layer's numbering; in each layer, tokens follow the numbering of the
            keys that it holds.
    """
    final = cache.columns[-1]
    decoded = cache.layers[-1].get_seq_length() - final.mask.shape[1] + input_ids.shape[1]
    new = final.mask.new_ones(len(input_ids), decoded) if attention_mask is None else attention_mask[:, -decoded:]
    hidden = decoder.model.get_input_embeddings()(input_ids)
    columns: PromptColumns | None = None
    masks: dict[str, Any] = {}
    for layer in range(len(decoder.layers)):
        if cache.columns[layer] is not columns:
            columns = cache.columns[layer]
            masks = {}
            positions = decoder.position_embeddings(hidden, position_ids + columns.last - final.last)
        kind = decoder.layer_type(layer)
        if kind not in masks:
            mask = torch.cat([columns.mask, new.bool()], 1)
            masks[kind] = decoder.attention_mask(layer, hidden, mask, _only(cache, layer))
        hidden = decoder.run_layer(layer, hidden, masks[kind], positions, cache, None)
    return CausalLMOutputWithPast(logits=decoder.logits(hidden), past_key_values=cache)


def _only(cache: PromptCache, layer: int) -> DynamicCache:
    """One layer as a cache: masks are made for the length of the first one."""
    alone = DynamicCache()
    alone.layers = [cache.layers[layer]]
    return alone
