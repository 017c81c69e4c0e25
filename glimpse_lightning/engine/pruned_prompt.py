"""Prompts pruned before the language model, as embeddings that another engine can go on from.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns that remain, ``V`` visual tokens, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prefill import prune
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.stage_loop import new_stage_runs
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    from glimpse_lightning.pruner.pruner import Pruner


@dataclass(frozen=True)
class PrunedPrompt:
    """A batch of prompts without the visual tokens that were dropped, before the first decoder layer.

    Its first three attributes are arguments of a Hugging Face model's ``forward`` and ``generate``. Positions are the
    original ones unless a stage renumbers them, so they have gaps: an engine that counts columns itself answers
    something else.

    Attributes:
        inputs_embeds: ``[B, M, D]``, padded on the left.
        attention_mask: ``[B, M]`` long, 0 at padding.
        position_ids: ``[B, M]``, or ``[axes, B, M]`` where the model rotates by several axes (M-RoPE).
        keep: ``[V]`` boolean over all visual tokens of the batch, sample by sample.
        prompt_keep: ``[B, N]`` true where a position of the caller's prompt remains.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    keep: Tensor
    prompt_keep: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of a Hugging Face model's ``forward`` and ``generate``."""
        names = ("inputs_embeds", "attention_mask", "position_ids")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def pruned_prompt(decoder: Decoder, pruner: Pruner, request: PrefillRequest) -> PrunedPrompt:
    """Prune the prompts of ``request`` before layer 0.

    Raises:
        GlimpseError: where a stage prunes later, or embeddings and positions are not all that the decoder reads of an
            image.
    """
    if late := [stage.after_layer for stage in pruner.stages if stage.after_layer >= 0]:
        raise GlimpseError(
            f"Expected a pruner that prunes before the language model (`after_layer: -1`), but a stage does after "
            f"layer {late[0]}: what is left then are states of this model, which no other engine goes on from."
        )
    what = "adds features of the image to later layers" if request.prompt.layer_features else (
        "lets the tokens of an image see each other" if decoder.bidirectional_images else ""
    )  # fmt: skip
    if what:
        raise GlimpseError(f"{decoder.name} {what}, so that embeddings and positions are not its whole prompt.")
    trunk = Trunk.start(decoder, request.prompt)
    keep, state = torch.ones_like(trunk.layout.item, dtype=torch.bool), dict(request.state)
    for run in new_stage_runs(pruner, trunk, trained=False):
        keep &= prune(run, trunk, run.tokens(trunk, request, state), request)[1]
    return PrunedPrompt(trunk.hidden, trunk.mask.long(), trunk.position_ids, keep, trunk.prompt_keep())
