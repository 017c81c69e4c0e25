"""What a backbone is: a thin adapter over an unmodified Hugging Face vision-language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    blockwise_overlay,
    create_causal_mask,
    create_sliding_window_causal_mask,
    flash_attention_mask,
)

from glimpse_lightning.backbones.collate import collate_samples, first_copies
from glimpse_lightning.backbones.processor_settings import described
from glimpse_lightning.backbones.refusals import collate_or_refuse, placeholders
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine import taps
from glimpse_lightning.engine.compaction import Compaction, pad_left
from glimpse_lightning.engine.decoding import step_by_layers
from glimpse_lightning.engine.prompt_cache import PromptCache
from glimpse_lightning.engine.recompute import recomputed
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import TokenLayout
from glimpse_lightning.engine.windows import within_window
from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.segments import repeated_segments, segment_count
from glimpse_lightning.sharding import gather_for_backward
from glimpse_lightning.visual_tokens import ModelFacts, Views, VisionTap

if TYPE_CHECKING:
    from glimpse_lightning.backbones.placeholders import Visuals


@dataclass
class Prompt:
    """A batch as it enters the decoder, padded on the left.

    Attributes:
        embeds: ``[B, N, D]`` with the image features in place.
        mask: ``[B, N]`` false at padding.
        position_ids: ``[..., B, N]`` as the model's rotary embedding takes them.
        visual: ``[B, N]`` true at visual tokens; read row by row they are the packed order of ``VisualTokens``.
        grid: ``[I, 3]`` (t, h, w) of each item after merging, in that order.
        vision: what was asked of the vision tower, by tap: ``[V, Dv]``.
        left_padding: how the columns were moved from the caller's layout; ``None`` where they were not.
        layer_features: by decoder layer, ``[V, D]`` that are added to the visual tokens' states after that layer.
        views: what each item shows; ``None`` = a whole image each.
    """

    embeds: Tensor
    mask: Tensor
    position_ids: Tensor
    visual: Tensor
    grid: Tensor
    vision: dict[VisionTap, Tensor] = field(default_factory=dict)
    left_padding: Compaction | None = None
    layer_features: dict[int, Tensor] = field(default_factory=dict)
    views: Views | None = None

    def to(self, device: torch.device) -> Prompt:
        """The same prompt on another device."""
        plan = self.left_padding
        return Prompt(
            embeds=self.embeds.to(device),
            mask=self.mask.to(device),
            position_ids=self.position_ids.to(device),
            visual=self.visual.to(device),
            grid=self.grid.to(device),
            vision={tap: value.to(device) for tap, value in self.vision.items()},
            left_padding=None if plan is None else plan.to(device),
            layer_features={layer: value.to(device) for layer, value in self.layer_features.items()},
            views=None if self.views is None else self.views.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        features = (self.embeds, *self.vision.values(), *self.layer_features.values())
        return sum(tensor.nbytes for tensor in features)  # beside these the rest is nothing

    def repeated(self, copies: int) -> Prompt:
        """Each sample ``copies`` times in a row."""
        if copies == 1:
            return self
        layout = TokenLayout.of(self.visual, self.grid)
        packed = repeated_segments(self.visual.sum(1), copies)
        items = segment_count(layout.item_sample, len(self.visual))
        plan, batch_axis = self.left_padding, self.position_ids.ndim - 2
        embeds, mask, visual = (x.repeat_interleave(copies, 0) for x in (self.embeds, self.mask, self.visual))
        return Prompt(
            embeds=embeds,
            mask=mask,
            position_ids=self.position_ids.repeat_interleave(copies, batch_axis),
            visual=visual,
            grid=self.grid[repeated_segments(items, copies)],
            vision={tap: value[packed] for tap, value in self.vision.items()},
            left_padding=None if plan is None else plan.repeated(copies),
            layer_features={layer: value[packed] for layer, value in self.layer_features.items()},
            views=None if self.views is None else self.views.repeated(items, copies),
        )

    def moved_left(self, plan: Compaction) -> Prompt:
        """The same prompt with its padding moved to the left by ``plan``."""
        return Prompt(
            embeds=plan.rows(self.embeds),
            mask=plan.columns(self.mask, 0),
            position_ids=plan.columns(self.position_ids, 1),
            visual=plan.columns(self.visual, 0),
            grid=self.grid,
            vision=self.vision,
            left_padding=plan,
            layer_features=self.layer_features,
            views=self.views,
        )


class Backbone(ABC):
    """Adapter over a Hugging Face model: embeds a prompt, names the decoder's parts, knows grid and positions.

    Nothing of the model is replaced or subclassed. A new family is one subclass that names its architectures and
    implements :meth:`embed`, :attr:`decoder` and :attr:`facts`; it is found by walking the subclasses.

    Args:
        model: the Hugging Face model.
        processor: its processor; ``None`` where ready tensor batches are fed.
        prune_video: whether tokens of videos are items that a pruner sees; else they are kept, as text is. Families
            that feed frames as images (InternVL, SmolVLM) cannot tell them apart and prune both.

    Attributes:
        recompute: whether the decoder layers' activations are computed again in the backward pass instead of kept.
        revision: version on the Hub that was asked for; ``None`` where none was.
        settings: settings of the image processor that were asked for, by name.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """Class names of the Hugging Face models this adapter understands."""
    bidirectional_images: ClassVar[bool] = False
    """Whether the tokens of one image see each other in both directions inside the decoder."""

    def __init__(self, model: PreTrainedModel, processor: Any | None = None, prune_video: bool = True) -> None:
        self.model: Any = model
        self.processor = processor
        self.prune_video = prune_video
        self.recompute = False
        self._placeholders: frozenset[str] | None = None
        self.revision: str | None = None
        self.settings: dict[str, Any] = {}
        self.name = model.name_or_path or type(model).__name__
        taps.install(self.text_config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process (``ddp_spawn``) transformers knows nothing of the taps yet."""
        self.__dict__.update(state)
        taps.install(self.text_config)

    def unwrap(self) -> PreTrainedModel:
        """The Hugging Face model as it was before it was wrapped: its attention, too, is Hugging Face's own again.

        Other backbones work on; so does this one, which wraps the model anew when it is used.
        """
        taps.uninstall(self.text_config)
        return self.model

    # -- what a family must say ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The text decoder: has ``layers``, ``norm``, ``rotary_emb`` and ``config``."""

    @property
    @abstractmethod
    def facts(self) -> ModelFacts:
        """Sizes that pruners are built for."""

    @abstractmethod
    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        """The visual inputs of a batch as the vision tower sees them, one entry per kind of placeholder."""

    @abstractmethod
    def embed_prompt(
        self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap], seen: list[Visuals] | None = None
    ) -> Prompt:
        """Embed processor outputs ``inputs``, in the caller's layout; ``inputs["attention_mask"]`` is always there.

        Args:
            seen: what :meth:`visuals` made of the same inputs, where the vision tower has run already.
        """

    @abstractmethod
    def example_inputs(
        self, sizes: Sequence[Sequence[tuple[int, int]]], padding_side: str = "left", first_sample: int = 0
    ) -> dict[str, Any]:
        """A hand-made random batch for conformance tests; sample ``i`` depends on ``first_sample + i`` alone.

        Args:
            sizes: per sample, the (height, width) in visual tokens of each of its images.
        """

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arguments of the Hugging Face model's own ``forward`` and ``generate``, from those of :meth:`embed`."""
        return dict(inputs)

    # -- what most families share -------------------------------------------------------------------------------

    @cached_property
    def text_config(self) -> PretrainedConfig:
        return self.model.config.get_text_config()

    @property
    def max_pixels(self) -> int | None:
        """Pixels of the largest image that the processor takes as it is; ``None`` where it knows no such number."""
        return None

    @property
    def pixel_multiple(self) -> int:
        """What the processor rounds the sides of an image to, in pixels."""
        return 1

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def lm_head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    @property
    def no_split_modules(self) -> tuple[str, ...]:
        """Class names of the units that sharding must keep whole."""
        return tuple(self.model._no_split_modules or ())

    def embed(
        self,
        inputs: Mapping[str, Any],
        vision_layers: Sequence[VisionTap] = (),
        seen: list[Visuals] | None = None,
    ) -> Prompt:
        """Embed processor outputs; whatever the padding side, the prompt comes back padded on the left.

        Args:
            seen: what :meth:`visuals` made of these ``inputs`` and ``vision_layers``, so that prompts can be embedded
                anew, as the text embeddings train, without the vision tower.

        Raises:
            GlimpseError: where ``input_ids`` are missing or a prompt is empty.
        """
        ids = inputs.get("input_ids")
        if ids is None or ids.ndim != 2:
            raise GlimpseError("Expected `input_ids` of shape [batch, tokens]; pass on everything the processor made.")
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        prompt = self.embed_prompt({**inputs, "attention_mask": mask}, vision_layers, seen)
        plan = pad_left(prompt.mask)
        return prompt if plan is None else prompt.moved_left(plan)

    def layer_type(self, layer: int) -> str:
        """Kind of attention mask that a layer wants."""
        types = getattr(self.text_config, "layer_types", None)
        if types:
            return types[layer]
        return "sliding_attention" if getattr(self.text_config, "sliding_window", None) else "full_attention"

    def window(self, layer: int) -> int | None:
        """How many columns a row of ``layer`` sees, its own included; ``None`` = all in front of it."""
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
        """Mask for ``layer`` as its kernel wants it, from the 2-D ``mask [B, past + queries]``.

        Args:
            image: ``[B, queries]`` the visual item of each column, -1 elsewhere; given for a prompt, and heeded where
                ``bidirectional_images``.
            counted: ``[B, past + queries]`` the columns that a sliding window counts; ``None`` = all of them.

        Raises:
            GlimpseError: where some columns shall not count, and the kernel makes its windows itself.
        """
        window = self.window(layer)
        make = {
            "config": self.text_config, "inputs_embeds": hidden, "attention_mask": mask, "past_key_values": cache,
        }  # fmt: skip
        if window is None:
            return create_causal_mask(**make)
        if counted is None:
            return create_sliding_window_causal_mask(**make)
        if ALL_MASK_ATTENTION_FUNCTIONS[self.text_config._attn_implementation] is flash_attention_mask:
            raise GlimpseError(
                f"{self.name!r} has sliding windows, which FlashAttention counts by columns. Soft gates of several "
                "stages close some of these, so that windows have to reach further: load the model with "
                "`attn_implementation='sdpa'`."
            )
        same = None if image is None or not self.bidirectional_images else blockwise_overlay(image)
        return create_causal_mask(**make, or_mask_function=same, and_mask_function=within_window(counted, window))

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

        recompute = self.recompute and torch.is_grad_enabled()
        out = recomputed(call, layer, hidden, cache) if recompute else call(hidden, cache)
        if tap is not None:
            gather_for_backward(self.layers[layer], tap.logits, tap.rows_logits)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocab]`` through the final norm and the language-model head."""
        return self.lm_head(self.decoder.norm(hidden))

    def decode_step(self, **kwargs: Any) -> Any:
        """The model's own cached step; ``position_ids`` are those of the new tokens.

        Where layers hold other columns of the prompt, or at other positions, its layers are run one by one.
        """
        cache = kwargs["past_key_values"]
        if isinstance(cache, PromptCache) and not cache.even:
            return step_by_layers(self, kwargs["input_ids"], kwargs["attention_mask"], kwargs["position_ids"], cache)
        return self.model(**kwargs)

    # -- text in and out ----------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        if self.processor is None:
            raise GlimpseError(
                f"Backbone {self.name!r} has no processor, so it takes ready tensor batches only; "
                "pass a processor to `gl.wrap_backbone(model, processor)`."
            )
        return self.processor.tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens at which generation stops: the ``eos_token_id`` of the model's generation config, in its order."""
        ends = self.model.generation_config.eos_token_id
        return () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples through chat template and processor into a batch, padded on the left, with answer tokens.

        Prompts are tokenized as by the processor's ``apply_chat_template``, and answers as in the conversation that the
        template writes whole, up to the first token of :attr:`end_token_ids`.

        Raises:
            GlimpseError: where nothing ends an answer, or the template cannot write a question or answer.
            RefusedSamplesError: where the processor takes some samples but not others; it names these.
        """
        tokenizer, ends = self.tokenizer, self.end_token_ids
        if not ends:
            raise GlimpseError(
                f"The generation config of {self.name!r} has no `eos_token_id`, so nothing ends an answer; set "
                "`model.generation_config.eos_token_id`."
            )
        if self._placeholders is None:
            self._placeholders = placeholders(self)
        stops = frozenset(tokenizer.convert_ids_to_tokens(list(ends)))
        batch = collate_or_refuse(
            lambda some: collate_samples(some, self.processor, tokenizer, ends),
            samples,
            self._placeholders,
            self._placeholders | stops,
        )
        first = first_copies([image for sample in samples for image in sample.images])
        if len(set(first)) < len(first):
            batch.inputs = self.share_images(batch.inputs, first)
        return batch

    def share_images(self, inputs: dict[str, Any], first: Sequence[int]) -> dict[str, Any]:
        """Processor outputs in which the vision tower meets equal images once; ``first[i]`` is the first like image i.

        A family that cannot do so leaves them as they are, which costs time and changes nothing else.
        """
        return inputs

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write model and processor as a plain Hugging Face folder; ``weights`` in place of the model's own."""
        self.model.save_pretrained(folder, state_dict=weights)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def described(self) -> dict[str, Any]:
        """Version and settings that results depend on, beyond the model's name, as plain values.

        ``revision`` is the version on the Hub that was asked for, ``None`` where none was. ``image_processor`` holds
        all settings of the image processor, changed or not; it is empty where there is none.
        """
        return {"revision": self.revision, "image_processor": described(self.processor)}

    def asked(self) -> str:
        """Settings and revision that were asked for, as a sentence for tables; empty where none were."""
        parts = [f"{name} {value}" for name, value in sorted(self.settings.items())]
        parts += [f"revision {self.revision}"] if self.revision else []
        return f"Backbone with {', '.join(parts)}." if parts else ""

    def until_end(self, rows: Iterable[Tensor]) -> list[list[int]]:
        """Generated token ids, one tensor ``[new]`` per answer, up to the first token that ends it, without that."""
        ends = set(self.end_token_ids)
        return [list(takewhile(lambda token: token not in ends, row.tolist())) for row in rows]

    def decode(self, ids: Iterable[Tensor]) -> list[str]:
        """Generated token ids, ``[B, new]`` or one tensor per answer, as stripped text up to the answer's end."""
        rows = self.until_end(ids)
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def pad_rows(rows: Sequence[Tensor], padding_side: str, padding_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, N]`` from token rows of several lengths."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), padding_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), None) if padding_side == "left" else slice(len(row))
        ids[index, where], mask[index, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def text_position_ids(mask: Tensor) -> Tensor:
    """Positions ``[B, N]`` that count unpadded tokens (1 at padding, as Hugging Face's ``generate`` has it)."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask.bool(), 1)
