"""Base class of backbones: thin adapters over unmodified Hugging Face vision-language models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from glimpse_lightning.backbones.chat import conversation_inputs
from glimpse_lightning.backbones.collate import collate_samples, first_copies, merged
from glimpse_lightning.backbones.processor_settings import described
from glimpse_lightning.backbones.refusals import check_conversation, collate_or_refuse, placeholders
from glimpse_lightning.core.visual_tokens import VisionTap
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine.compaction import pad_left
from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.generate_options import greedy_settings
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    from glimpse_lightning.backbones.visuals import Visuals


class Backbone(Decoder):
    """Adapter over a Hugging Face model: embedding of prompts, parts of the decoder, grids and positions of tokens.

    Nothing of the model is replaced or subclassed. A new family is one subclass that names its architectures and
    implements :meth:`embed`, :attr:`decoder` and :attr:`facts`; loading finds it among the subclasses of this class.

    Args:
        model: the Hugging Face model.
        processor: processor of the model; ``None``: the backbone takes ready tensor batches only.
        prune_video: whether a pruner sees the tokens of videos; if not, they are kept like text. Families that pass
            frames as images (InternVL, SmolVLM) cannot distinguish them and prune both.

    Attributes:
        revision: requested version on the Hub; ``None``: no version was requested.
        settings: requested settings of the image processor, by name.

    Examples:
        >>> class MyBackbone(gl.backbones.Qwen25VLBackbone):  # Qwen2.5-VL in a Hugging Face class of another name
        ...     architectures = ("MyVLForConditionalGeneration",)
        >>> tiny = gl.load_backbone("glimpse-tiny")
        >>> MyBackbone(tiny.model, tiny.processor).facts.num_layers
        8
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """Class names of the Hugging Face models that this adapter supports."""
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "pixel_values", "image_sizes",
    )  # fmt: skip
    """Names of the tensors that make up a prompt. The processor may add names of its own (:attr:`prompt_inputs`)."""
    image_only_processor: ClassVar[bool] = False
    """Whether ``ImageOnlyProcessor`` replaces the stock processor if torchvision is missing."""

    def __init__(self, model: PreTrainedModel, processor: Any | None = None, prune_video: bool = True) -> None:
        super().__init__(model)
        self.processor = processor
        self.prune_video = prune_video
        self._placeholders: frozenset[str] | None = None
        self.revision: str | None = None
        self.settings: dict[str, Any] = {}

    # -- to be defined by a family ------------------------------------------------------------------------------

    @abstractmethod
    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        """The visual inputs of a batch after the vision tower, one entry per kind of placeholder."""

    @abstractmethod
    def embed_prompt(
        self,
        inputs: Mapping[str, Any],
        vision_layers: Sequence[VisionTap],
        vision_output: list[Visuals] | None = None,
    ) -> Prompt:
        """Embed processor outputs ``inputs``, in the caller's layout; ``inputs`` always holds ``attention_mask``.

        Args:
            vision_output: cached output of :meth:`visuals` for the same inputs; ``None``: the vision tower runs.
        """

    @abstractmethod
    def example_inputs(
        self, sizes: Sequence[Sequence[tuple[int, int]]], padding_side: str = "left", first_sample: int = 0
    ) -> dict[str, Any]:
        """A hand-made random batch for conformance tests; sample ``i`` depends on ``first_sample + i`` alone.

        Args:
            sizes: (height, width) in visual tokens of each image, by sample.
        """

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arguments of the Hugging Face model's own ``forward`` and ``generate``, from those of :meth:`embed`."""
        return dict(inputs)

    # -- defaults of most families ------------------------------------------------------------------------------

    @property
    def max_pixels(self) -> int | None:
        """Pixels of the largest image that the processor does not shrink; ``None``, the default: unknown."""
        return None

    @property
    def pixel_multiple(self) -> int:
        """Number of pixels to whose multiples the processor rounds the sides of an image; default: 1."""
        return 1

    @property
    def prompt_inputs(self) -> frozenset[str]:
        """Names of all possible inputs of a prompt: :attr:`input_names` and the processor's outputs."""
        return frozenset((*self.input_names, *getattr(self.processor, "model_input_names", ())))

    @property
    def visual_token_ids(self) -> tuple[int, ...]:
        """Ids of the placeholders of visual tokens, read from the model's configuration."""
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        found = (getattr(self.model.config, name, None) for name in names)
        return tuple(dict.fromkeys(number for number in found if isinstance(number, int)))

    @property
    def no_split_modules(self) -> tuple[str, ...]:
        """Class names of the units that sharding must keep whole."""
        return tuple(self.model._no_split_modules or ())

    def embed(
        self,
        inputs: Mapping[str, Any],
        vision_layers: Sequence[VisionTap] = (),
        vision_output: list[Visuals] | None = None,
    ) -> Prompt:
        """Embed processor outputs, padded on either side. The result is padded on the left.

        Args:
            vision_output: cached output of the frozen vision tower (:meth:`visuals` of the same arguments), reused when
                prompts are embedded again. ``None``: the vision tower runs.

        Raises:
            GlimpseError: if ``input_ids`` are missing or a prompt is empty.
        """
        ids = inputs.get("input_ids")
        if ids is None or ids.ndim != 2:
            raise GlimpseError("Expected `input_ids` of shape [batch, tokens]; pass on everything the processor made.")
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        prompt = self.embed_prompt({**inputs, "attention_mask": mask}, vision_layers, vision_output)
        plan = pad_left(prompt.mask)
        return prompt if plan is None else prompt.moved_left(plan)

    # -- text in and out ----------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        if self.processor is None:
            raise GlimpseError(
                f"Backbone {self.name!r} has no processor, so it takes ready tensor batches only; put the checkpoint's "
                "preprocessor and tokenizer files into its folder (a `random:` model has none), or in Python "
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

        Prompts have the tokens of the processor's ``apply_chat_template``. Answers have the tokens of the whole
        conversation, answer included, up to the first token of :attr:`end_token_ids`.

        Raises:
            GlimpseError: if no end token is known, or the template cannot write a question or answer.
            RefusedSamplesError: if the processor refuses some of the samples; the error names them.
        """
        tokenizer, ends = self.tokenizer, self.end_token_ids
        if not ends:
            raise GlimpseError(
                f"The generation config of {self.name!r} has no `eos_token_id`, so nothing ends an answer; set "
                "`model.generation_config.eos_token_id`."
            )
        stops = frozenset(tokenizer.convert_ids_to_tokens(list(ends)))
        batch = collate_or_refuse(
            lambda some: collate_samples(some, self.processor, tokenizer, ends),
            samples,
            self.placeholders,
            self.placeholders | stops,
        )
        first = first_copies([image for sample in samples for image in sample.images])
        if len(set(first)) < len(first):
            batch.inputs = self.share_images(batch.inputs, first)
        return batch

    @property
    def placeholders(self) -> frozenset[str]:
        """Texts that stand for images, videos or audio, which no text of a prompt may hold."""
        if self._placeholders is None:
            self._placeholders = placeholders(self.model.config, self.processor)
        return self._placeholders

    def converse(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Processor outputs of one conversation that waits for an answer, by the model's chat template.

        Args:
            messages: messages in Hugging Face's form, each with ``role`` and a list ``content`` of parts ``{"type":
                "text", "text": str}`` and ``{"type": "image", "image": PIL image}``, in any order and number.

        Raises:
            GlimpseError: if a text holds a placeholder of images, or template or processor refuse the conversation.
        """
        tokenizer = self.tokenizer  # raises where there is no processor
        check_conversation(messages, self.placeholders)
        try:
            return conversation_inputs([messages], self.processor)
        except Exception as error:  # templates and processors raise errors of many types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            template = "" if getattr(self.processor, "chat_template", None) or tokenizer.chat_template else (
                " Base models have no chat template: name the instruction-tuned one."
            )  # fmt: skip
            raise GlimpseError(
                f"The model's chat template or processor refuses this conversation ({reason}). Check the roles, their "
                f"order, and the sizes of images.{template}"
            ) from error

    def merge(self, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of prompts out of several, each the processor outputs of one or more; see :func:`~.merged`."""
        padding = self.tokenizer.pad_token_id
        return merged(prompts, 0 if padding is None else padding)

    def share_images(self, inputs: dict[str, Any], first: Sequence[int]) -> dict[str, Any]:
        """Processor outputs in which equal images appear once; ``first[i]`` is the index of the first image equal to
        image i.

        By default the inputs are returned unchanged. The vision tower then runs on every copy, with the same results.
        """
        return inputs

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write model and processor as a plain Hugging Face folder; ``weights`` replace the model's own."""
        self.model.save_pretrained(folder, state_dict=weights)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def described(self) -> dict[str, Any]:
        """Version and settings that affect results, besides the model's name, as plain values.

        ``revision`` is the requested version on the Hub, or ``None``. ``image_processor`` holds all settings of the
        image processor, changed or not, and is empty without one. ``generation_config`` holds the checkpoint's settings
        of greedy decoding (:func:`~.generate_options.greedy_settings`).
        """
        return {
            "revision": self.revision,
            "image_processor": described(self.processor),
            "generation_config": greedy_settings(self.model.generation_config),
        }

    def asked(self) -> str:
        """Requested settings and revision as a sentence for tables; empty without any."""
        parts = [f"{name} {value}" for name, value in sorted(self.settings.items())]
        parts += [f"revision {self.revision}"] if self.revision else []
        return f"Backbone with {', '.join(parts)}." if parts else ""

    def until_end(self, rows: Iterable[Tensor]) -> list[list[int]]:
        """Generated token ids, one tensor ``[new]`` per answer, up to and without the first end token."""
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
    """Positions ``[B, N]`` that count unpadded tokens (1 at padding, as in Hugging Face's ``generate``)."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask.bool(), 1)
