"""Base class of families whose prompt holds one placeholder token per visual token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_lightning.backbones.base import Backbone, pad_rows, text_position_ids
from glimpse_lightning.backbones.vision_taps import capture_blocks
from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.core.visual_tokens import ModelFacts, Views, VisionAttention, VisionPixels, VisionTap
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.runtime.errors import GlimpseError


class PlaceholderBackbone(Backbone):
    """A family whose ``input_ids`` hold one placeholder per visual token.

    A family defines its :attr:`vision_blocks`, its :meth:`visuals` and, for the conformance kit, an
    :meth:`example_image`. Positions have one dimension unless :meth:`position_ids` is overridden.
    """

    # -- to be defined by a family ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def vision_blocks(self) -> nn.ModuleList:
        """Blocks of the vision tower; ``vision_layers`` count them from 0."""

    @abstractmethod
    def example_image(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Prompt tokens and random pixel inputs of one image of about ``height x width`` visual tokens."""

    # -- defaults of most families ------------------------------------------------------------------------------

    def capture(
        self, vision_layers: Sequence[VisionTap], merge: Callable[[Tensor], Tensor] | None = None
    ) -> AbstractContextManager[dict[VisionTap, Tensor]]:
        """Context in which the states or attention requested by ``vision_layers`` are stored, by tap.

        Args:
            merge: function from a block's output to one row per visual token, applied at once; ``None``: outputs are
                stored unchanged, so all patches of all requested blocks stay in memory while the tower runs.
        """
        class_token = any(isinstance(tap, VisionAttention) for tap in vision_layers) and self.has_class_token
        of_blocks = [tap for tap in vision_layers if not isinstance(tap, VisionPixels)]
        return capture_blocks(self.vision_blocks, of_blocks, merge, class_token)

    @property
    def has_class_token(self) -> bool:
        """Whether the vision tower's sequences start with a class token."""
        return any(name.endswith(("class_embedding", "cls_token")) for name, _ in self.model.named_parameters())

    @cached_property
    def decoder(self) -> nn.Module:
        return self.model.get_decoder()

    @property
    def vision_hidden_size(self) -> int:
        return self.model.config.vision_config.hidden_size

    @cached_property
    def facts(self) -> ModelFacts:
        text = self.text_config
        heads = text.num_attention_heads
        return ModelFacts(
            num_layers=text.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            rms_norm_eps=text.rms_norm_eps,
            vision_layers=len(self.vision_blocks),
            vision_hidden_size=self.vision_hidden_size,
            model_type=self.model.config.model_type,
            whole_image_blocks=getattr(getattr(self.model.config, "vision_config", None), "fullatt_block_indexes", ()),
        )

    def position_ids(self, inputs: Mapping[str, Any]) -> Tensor:
        """Positions ``[..., B, N]`` of the prompt's tokens, in the form that the rotary embedding takes."""
        return text_position_ids(inputs["attention_mask"])

    def embed_prompt(
        self,
        inputs: Mapping[str, Any],
        vision_layers: Sequence[VisionTap],
        vision_output: list[Visuals] | None = None,
    ) -> Prompt:
        ids = inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        visual = torch.zeros_like(ids, dtype=torch.bool)
        parts, places = self.visuals(inputs, vision_layers) if vision_output is None else vision_output, []
        for part in parts:
            if VisionPixels() in vision_layers and VisionPixels() not in part.states:
                raise GlimpseError(
                    f"A scorer or policy asks for the pixels of tokens, but those of {type(self.model).__name__} "
                    "cover no whole rectangles of them. Qwen-VL and LLaVA-1.5 have them."
                )
            where = ids == part.token_id
            embeds = _place(embeds, where, part.features)
            prunable = torch.zeros_like(visual).masked_scatter(where, part.prunable.to(ids.device))
            places.append(prunable.flatten().nonzero()[:, 0])
            visual |= prunable
        prompt = Prompt(embeds, inputs["attention_mask"].bool(), self.position_ids(inputs), visual, ids.new_zeros(0, 3))
        prompt.vision = {tap: embeds.new_zeros(0, self._width(tap)) for tap in vision_layers}
        if parts:
            _merge(prompt, parts, places)
        return prompt

    def _width(self, tap: VisionTap) -> int:
        if isinstance(tap, VisionAttention):
            return 1
        if isinstance(tap, VisionPixels):
            return 0  # of no image
        if isinstance(tap, int) or tap.heads == "joint":
            return self.vision_hidden_size
        config = self.model.config.vision_config
        heads: int = getattr(config, "num_heads", None) or config.num_attention_heads
        return self.vision_hidden_size // heads

    # -- hand-made batches --------------------------------------------------------------------------------------

    def example_inputs(
        self, sizes: Sequence[Sequence[tuple[int, int]]], padding_side: str = "left", first_sample: int = 0
    ) -> dict[str, Any]:
        special = [v for k, v in self.model.config.to_dict().items() if k.endswith(("token_id", "token_index"))]
        words = torch.tensor([i for i in range(10, self.text_config.vocab_size) if i not in special])
        rows, images = [], []
        for index, wanted in enumerate(sizes, start=first_sample):
            generator = torch.Generator().manual_seed(index)
            made = [self.example_image(height, width, generator) for height, width in wanted]
            before = words[torch.randint(len(words), (2,), generator=generator)]
            after = words[torch.randint(len(words), (3 + index % 3,), generator=generator)]
            between = words[torch.randint(len(words), (len(made), 1), generator=generator)]
            turns = [part for (tokens, _), word in zip(made, between, strict=True) for part in (tokens, word)]
            rows.append(torch.cat([before, *turns, after]))
            images.append([pixels for _, pixels in made])
        inputs = pad_rows(rows, padding_side, 0)
        if any(images):
            inputs |= self.example_pixels(images)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def example_pixels(self, images: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """The batch's pixel inputs from those of each sample's images."""
        flat = [image for sample in images for image in sample]
        return {name: torch.cat([image[name] for image in flat]) for name in flat[0]}


def _place(embeds: Tensor, where: Tensor, features: Tensor) -> Tensor:
    if int(where.sum()) != len(features):
        raise GlimpseError(
            f"Expected one visual placeholder per visual token, but got {int(where.sum())} placeholders and "
            f"{len(features)} tokens; the prompt must come from the same processor call as the images."
        )
    return embeds.masked_scatter(where[..., None], features.to(embeds.device, embeds.dtype))


def _merge(prompt: Prompt, parts: Sequence[Visuals], places: Sequence[Tensor]) -> None:
    """Put items and tokens of all ``parts``, whose prunable tokens lie at ``places``, in the order of the prompt."""
    starts = []
    for part, place in zip(parts, places, strict=True):
        sizes = part.grid.prod(-1)
        starts.append(place[sizes.cumsum(0) - sizes])
    items = torch.cat(starts).argsort()
    prompt.grid = torch.cat([part.grid for part in parts])[items]
    prompt.views = _joined(parts, items)
    order = torch.cat(list(places)).argsort()

    def ordered(rows: list[dict[Any, Tensor]]) -> dict[Any, Tensor]:
        return {layer: torch.cat([row[layer].to(order.device) for row in rows])[order] for layer in rows[0]}

    prompt.vision = ordered([part.states for part in parts])
    prompt.layer_features = ordered([part.layer_features for part in parts])


def _joined(parts: Sequence[Visuals], items: Tensor) -> Views:
    """The views of all ``parts``, their ``items [I]`` in the order of the prompt and images numbered anew."""
    views = [Views.whole(len(part.grid), items.device) if part.views is None else part.views for part in parts]
    images, first = [], 0
    for view in views:
        images.append(view.image + first)
        first += int(view.image.max()) + 1 if len(view.image) else 0
    image = torch.cat(images)[items].unique_consecutive(return_inverse=True)[1]
    return Views(image, torch.cat([view.region for view in views])[items])
