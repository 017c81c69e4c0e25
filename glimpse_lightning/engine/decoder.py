"""The text decoder of a Hugging Face model, as the engine runs it: layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    blockwise_overlay,
    create_causal_mask,
    create_sliding_window_causal_mask,
    flash_attention_mask,
    sliding_window_overlay,
)

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.engine import taps
from glimpse_lightning.engine.activation_checkpointing import recomputed
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.windows import within_window
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import gather_for_backward


class Decoder(ABC):
    """The interface of a model to the engine.

    Nothing of the model is replaced; its attention function is wrapped (:mod:`~glimpse_lightning.engine.taps`).

    Args:
        model: the Hugging Face model.

    Attributes:
        name: the model's name, for messages.
        recompute: whether the decoder layers' activations are computed again in the backward pass instead of kept.
    """

    bidirectional_images: ClassVar[bool] = False
    """Whether the tokens of one image see each other in both directions inside the decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.recompute = False
        self.name = model.name_or_path or type(model).__name__
        taps.install(self.text_config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Install the taps again in another process (``ddp_spawn``), where transformers has none yet."""
        self.__dict__.update(state)
        taps.install(self.text_config)

    def unwrap(self) -> PreTrainedModel:
        """The Hugging Face model as it was before it was wrapped: its attention, too, is Hugging Face's own again.

        Other backbones work on; so does this one, which wraps the model anew when it is used.
        """
        taps.uninstall(self.text_config)
        return self.model

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The text decoder, with ``layers``, ``norm``, ``rotary_emb`` and ``config``."""

    @property
    @abstractmethod
    def facts(self) -> ModelFacts:
        """Sizes that pruners are built for."""

    @cached_property
    def text_config(self) -> PretrainedConfig:
        return self.model.config.get_text_config()

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def lm_head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def layer_type(self, layer: int) -> str:
        """Kind of attention mask that a layer takes."""
        types = getattr(self.text_config, "layer_types", None)
        if types:
            return types[layer]
        return "sliding_attention" if getattr(self.text_config, "sliding_window", None) else "full_attention"

    def window(self, layer: int) -> int | None:
        """Number of columns that a row of ``layer`` sees, its own included; ``None`` = all before it."""
        sliding = self.layer_type(layer) == "sliding_attention"
        return self.text_config.sliding_window if sliding else None

    def attention_mask(
        self,
        layer: int,
        hidden: Tensor,
        mask: Tensor,
        cache: Cache | None,
        image: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Any:
        """Mask for ``layer`` as its kernel takes it, from the 2-D ``mask [B, past + queries]``.

        Args:
            image: ``[B, queries]`` the visual item of each column, -1 elsewhere, where tokens of one item see each
                other (``bidirectional_images``); for a prompt only.
            counted: ``[B, past + queries]`` the columns that a sliding window counts; ``None`` = all of them.

        Raises:
            GlimpseError: where some columns must not count, and the kernel makes its windows itself.
        """
        window = self.window(layer)
        make = {
            "config": self.text_config, "inputs_embeds": hidden, "attention_mask": mask, "past_key_values": cache,
        }  # fmt: skip
        by_columns = counted is None or window is None
        if by_columns and image is None:
            return (create_causal_mask if window is None else create_sliding_window_causal_mask)(**make)
        kernel = ALL_MASK_ATTENTION_FUNCTIONS[self.text_config._attn_implementation]
        if not by_columns and kernel is flash_attention_mask:
            raise GlimpseError(
                f"{self.name!r} has sliding windows, which FlashAttention counts by columns. Soft gates of several "
                "stages close some of these, so that windows have to reach further: load the model with "
                "`attn_implementation='sdpa'`."
            )
        inside = None
        if window is not None:
            inside = sliding_window_overlay(window) if counted is None else within_window(counted, window)
        same = None if image is None else blockwise_overlay(image)
        return create_causal_mask(**make, or_mask_function=same, and_mask_function=inside)

    def position_embeddings(self, hidden: Tensor, position_ids: Tensor) -> Any:
        return self.decoder.rotary_emb(hidden, position_ids)

    def run_layer(
        self, layer: int, hidden: Tensor, mask: Any, positions: Any, cache: Cache | None, tap: AttentionTap | None
    ) -> Tensor:
        """One decoder layer, Hugging Face's own: ``[B, n, D] -> [B, n, D]``."""
        if tap is not None:
            taps.install(self.text_config)  # again where another backbone, of equal attention, was unwrapped

        def call(hidden: Tensor, cache: Cache | None) -> Tensor:
            out = self.layers[layer](
                hidden,
                attention_mask=mask,
                position_embeddings=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                glimpse_tap=tap,
            )
            return out[0] if isinstance(out, tuple) else out

        with_graph = torch.is_grad_enabled()
        out = recomputed(call, layer, hidden, cache) if self.recompute and with_graph else call(hidden, cache)
        if tap is not None and with_graph:
            gather_for_backward(self.layers[layer], tap.logits, tap.rows_logits)
        if with_graph and cache is not None and len(cache.layers) > layer:  # where nothing reads `out`, these are read
            gather_for_backward(self.layers[layer], cache.layers[layer].keys, cache.layers[layer].values)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocab]`` through the final norm and the language-model head."""
        return self.lm_head(self.decoder.norm(hidden))
