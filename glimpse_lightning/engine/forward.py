"""A model's own forward: a prompt that is pruned, and its continuation, predicted with one call.

Suffixes: ``B`` samples, ``N`` columns as the caller has them, ``P`` columns of the longest prompt, ``T`` tokens of the
longest continuation, ``M`` columns that pruning leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.engine.replay import answer_logits
from glimpse_lightning.runtime.errors import GlimpseError

IGNORED = -100
"""Label of positions that no loss counts, as in Hugging Face."""


@dataclass(frozen=True)
class Parts:
    """A batch taken apart into prompts, padded on the left, and continuations, padded on the right.

    Attributes:
        prompt, rest: ``[B, P]`` and ``[B, T]``, the caller's columns.
        prompt_mask, rest_mask: likewise, false at padding.
    """

    prompt: Tensor
    prompt_mask: Tensor
    rest: Tensor
    rest_mask: Tensor

    @classmethod
    def of(cls, mask: Tensor, labels: Tensor | None, prompt_length: int | Tensor | None) -> Parts:
        """Where the continuation begins: after ``prompt_length`` tokens, else at the first label, else nowhere."""
        real = mask.bool()
        if prompt_length is not None:
            length = torch.as_tensor(prompt_length, device=mask.device).expand(len(mask))
            continued = real.cumsum(1) > length[:, None]
        elif labels is not None:
            continued = (labels != IGNORED).cumsum(1) > 0
        else:
            continued = torch.zeros_like(real)
        prompt, rest = real & ~continued, real & continued
        longest, most = int(prompt.sum(1).max()), int(rest.sum(1).max())
        if not bool(prompt.any(1).all()):
            raise GlimpseError(
                "Expected a prompt in front of the labels: what is kept may depend on nothing else. Set the labels of "
                f"the prompt to {IGNORED}, or give `prompt_length`, its number of tokens."
            )
        columns = prompt.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]
        following = (~rest).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        return cls(columns, prompt.gather(1, columns), following, rest.gather(1, following))

    def prompts(self, inputs: Mapping[str, Any], pad: int) -> dict[str, Any]:
        """The processor's outputs for the prompts alone."""
        ids = inputs["input_ids"]
        out = {
            name: value.gather(1, self.prompt) if isinstance(value, Tensor) and value.shape == ids.shape else value
            for name, value in inputs.items()
        }
        out["input_ids"] = out["input_ids"].masked_fill(~self.prompt_mask, pad)
        out["attention_mask"] = self.prompt_mask.long()
        return out


def check_placeholders(placeholders: Sequence[int], ids: Tensor, parts: Parts) -> None:
    """Raise where images or videos, of which the prompt holds ``placeholders``, follow it."""
    rest = ids.gather(1, parts.rest)[parts.rest_mask]
    for token in placeholders:
        if bool((rest == token).any()):
            raise GlimpseError(
                f"Expected all images before the first label, but a placeholder (token {token}) follows it: tokens "
                f"that are pruned belong to the prompt. Set labels up to the last image to {IGNORED}, or give "
                "`prompt_length`."
            )


def logits_of(decoder: Decoder, out: PrefillOutput, parts: Parts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions at all columns ``[B, N, vocab]``, NaN at padding and at dropped tokens; and those of the
    continuation ``[B, T + 1, vocab]``, the last one for the token after it.

    Gradients go through the latter and through the last column of the prompt.
    """
    assert out.hidden is not None and out.column is not None
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    rest = ids.gather(1, parts.rest)
    followed = torch.cat([rest, rest.new_zeros(len(rest), 1)], 1)  # the last one's prediction is wanted too
    mask = torch.cat([parts.rest_mask, parts.rest_mask.new_ones(len(rest), 1)], 1)
    predicted = answer_logits(decoder, out, out.cache, followed, mask)
    with torch.no_grad():
        of_prompt = decoder.logits(out.hidden)
    logits = torch.full((*ids.shape, predicted.shape[-1]), torch.nan, dtype=predicted.dtype, device=ids.device)
    kept = out.attention_mask.bool()
    rows = batch.expand_as(kept)
    logits = logits.index_put((rows[kept], parts.prompt.gather(1, out.column)[kept]), of_prompt[kept])
    last = parts.prompt[:, -1:]
    places = torch.cat([last, parts.rest], 1)
    valid = torch.cat([torch.ones_like(last, dtype=torch.bool), parts.rest_mask], 1)
    logits = logits.index_put((batch.expand_as(places)[valid], places[valid]), predicted[valid])
    return logits, predicted
