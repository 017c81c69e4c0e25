"""Dialogue: a conversation about images with a pruned model, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.engine.decoding import continued
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.engine.trunk_memory import TrunkMemory
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.policies.checks import check_choice
from glimpse_lightning.runtime.errors import GlimpseError

Keeps = Literal["states", "cache", "nothing"]
TEXTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs of a prompt with one entry for each of its tokens; all others are of images."""


@dataclass(frozen=True)
class Turn:
    """One answer of a dialogue.

    Attributes:
        answer: the answer.
        prefill: the prompt after the prefill, as :meth:`gl.PrunedVLM.prefill` returns it.
        ran: number of the prompt's tokens that ran through the layers before the first stage (or, going on from a
            cache, through all layers).
        images_seen: number of images that ran through the vision tower.
        kept_bytes: bytes that are kept for the next turn, next to the vision tower's output: embedded prompt, states,
            keys and values.
    """

    answer: str
    prefill: PrefillOutput
    ran: int
    images_seen: int
    kept_bytes: int


class Dialogue:
    """A conversation about images with a pruned model. The vision tower runs once for each image.

    Args:
        model: the model; with a pruner or without.
        keeps: what is kept between two turns.

            ``states`` (default): keys, values and states of all tokens in the layers before the first stage. A turn
            runs its new tokens alone through them, and its stages choose anew among all visual tokens, by its own
            question. Its answers are those of ``nothing``.

            ``cache``: the pruned keys and values. A turn runs its new tokens alone through all layers, and sees
            what the first turn has kept; nothing that was dropped comes back. Right where the choice does not depend on
            the question (scorers before the language model that do not read it).

            ``nothing``: each turn runs the whole conversation. ``states`` does the same where tokens of an image see
            later ones (Gemma 3).
        system: a system prompt.

    Attributes:
        messages: the conversation so far, in Hugging Face's form.

    Raises:
        GlimpseError: where the backbone has no processor.

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.3))
        >>> dialogue = gl.Dialogue(gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage])))
        >>> sample = gl.GlyphVQA("test")[0]
        >>> turn = dialogue.ask(sample.question, sample.images, max_new_tokens=16)
        >>> dialogue.ask("what holds M", max_new_tokens=16).images_seen
        0
    """

    def __init__(self, model: PrunedVLM, keeps: Keeps = "states", system: str | None = None) -> None:
        check_choice("keeps", keeps, ("states", "cache", "nothing"))
        _ = model.backbone.tokenizer  # raises where there is none
        self.model = model
        self.keeps: Keeps = keeps
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        self._memory = self._new_memory()
        self._last: PrefillOutput | None = None
        self._visuals: list[Visuals] | None = None
        self._pixels: dict[str, Tensor] = {}
        self._ids: Tensor | None = None

    def ask(
        self,
        question: str,
        images: Sequence[Image] = (),
        *,
        retention: float | Sequence[float] | None = None,
        threshold: float | Sequence[float] | None = None,
        **options: Any,
    ) -> Turn:
        """Ask a question, about new images, which precede it, or those of earlier turns. A turn that fails leaves the
        conversation as it was.

        Args:
            retention, threshold: budgets of this turn, as in :meth:`gl.PrunedVLM.prefill`.
            **options: arguments of ``generate``, such as ``max_new_tokens``.

        Raises:
            GlimpseError: for new images or a budget where ``keeps`` is ``cache`` and a turn has gone before, and as
                :meth:`gl.Backbone.converse` and :meth:`gl.PrunedVLM.generate` do.
        """
        parts = [{"type": "image", "image": image} for image in images]
        asked = [*self.messages, {"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        before = self._visuals, self._pixels, self._ids
        try:
            turn = self._turn(asked, bool(parts), retention, threshold, options)
        except BaseException:
            self._visuals, self._pixels, self._ids = before
            self._memory = self._new_memory()  # it may hold some layers of the turn and not others
            raise
        self.messages = [*asked, {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]
        return turn

    def _turn(
        self, messages: Sequence[Mapping[str, Any]], with_images: bool, retention: Any, threshold: Any, options: Any
    ) -> Turn:
        inputs = {
            name: value.to(self.model.device) if isinstance(value, Tensor) else value
            for name, value in self.model.backbone.converse(messages).items()
        }
        seen = 0
        if self._last is not None:
            if with_images or retention is not None or threshold is not None:
                raise GlimpseError(
                    "Going on from a pruned cache, a turn takes no new images and prunes nothing. Use `keeps='states'`."
                )
            prefill, ran = self._go_on(self._last, inputs["input_ids"])
        else:
            seen = self._see(inputs)
            prefill, ran = self._prefill(inputs, retention, threshold)
        ids = self.model.generate(prefill=prefill, **options)
        if not isinstance(ids, Tensor):
            raise GlimpseError("Expected `generate` to return tokens alone; leave out `return_dict_in_generate`.")
        if len(ids) != 1:
            raise GlimpseError("Expected one answer; leave out `num_return_sequences`.")
        if self.keeps == "cache":
            self._last = prefill
        return Turn(self.model.backbone.decode(ids)[0], prefill, ran, seen, self._held(prefill))

    # -- the language model ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _prefill(self, inputs: dict[str, Any], retention: Any, threshold: Any) -> tuple[PrefillOutput, int]:
        """A prefill of the whole conversation, and the number of tokens that ran."""
        model = self.model
        prompt = model.backbone.embed(inputs, model.vision_layers, self._visuals)
        memory = self._memory
        if memory is not None:
            memory.meet(prompt)
        texts = {name: value for name, value in inputs.items() if name in TEXTS}
        prefill = model.prefill(prompt=prompt, shared=memory, retention=retention, threshold=threshold, **texts)
        return prefill, prompt.mask.shape[1] - (0 if memory is None else memory.length)

    @torch.no_grad()
    def _go_on(self, before: PrefillOutput, ids: Tensor) -> tuple[PrefillOutput, int]:
        """The prefill that goes on from the one before with the rest of the conversation ``ids [1, N]``."""
        assert before.prompt_ids is not None
        width = before.prompt_ids.shape[1]
        if ids.shape[1] <= width or not torch.equal(ids[:, :width], before.prompt_ids):
            raise GlimpseError(
                "This model's chat template writes earlier turns in another way once others follow, so their cache is "
                "not that of the conversation. Use `keeps='states'`."
            )
        rest = ids[:, width:]
        return continued(self.model.backbone, before, rest), rest.shape[1]

    def _held(self, prefill: PrefillOutput) -> int:
        """Bytes kept for the next turn, the vision tower's output left out."""
        if self.keeps == "cache":
            return sum(layer.keys.nbytes + layer.values.nbytes for layer in prefill.cache.layers)
        return 0 if self._memory is None else self._memory.nbytes

    def _new_memory(self) -> TrunkMemory | None:
        return TrunkMemory.of(self.model.backbone, self.model.pruner) if self.keeps == "states" else None

    # -- images ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _see(self, inputs: dict[str, Any]) -> int:
        """Run the vision tower on the images that it has not seen; returns their number."""
        model, pixels = self.model, {name: value for name, value in inputs.items() if name not in TEXTS}
        new = _added(self._pixels, pixels) if self._visuals else pixels
        if new is None:  # the processor makes earlier images anew
            new, self._visuals = pixels, None
        if any(value.numel() for value in new.values()):
            known = 0 if self._ids is None or self._visuals is None else _common(self._ids, inputs["input_ids"])
            texts = {name: inputs[name][:, known:] for name in TEXTS if name in inputs}
            found = model.backbone.visuals({**texts, **new}, model.vision_layers)
        else:
            found = []
        before = self._visuals or []
        if before and found:
            self._visuals = [old.joined(more) for old, more in zip(before, found, strict=True)]
        else:
            self._visuals = before or found
        self._pixels, self._ids = pixels, inputs["input_ids"]
        return sum(_images(part) for part in found)


def _common(before: Tensor, ids: Tensor) -> int:
    """Number of first tokens that ``before [1, M]`` and ``ids [1, N]`` have in common."""
    width = min(before.shape[1], ids.shape[1])
    return int((before[0, :width] == ids[0, :width]).long().cumprod(0).sum())


def _images(visuals: Visuals) -> int:
    """Number of images of which these are the visual inputs."""
    return len(visuals.grid) if visuals.views is None else len(visuals.views.image.unique())


def _added(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Inputs of the images that came after those of ``before``; ``None`` where the earlier ones have changed."""
    added = {}
    for name, value in now.items():
        old = before.get(name)
        if old is None or old.ndim != value.ndim:
            return None
        axes = [axis for axis, size in enumerate(value.shape) if size != old.shape[axis]]
        axis = axes[0] if axes else 0
        length = old.shape[axis]
        if len(axes) > 1 or value.shape[axis] < length or not torch.equal(value.narrow(axis, 0, length), old):
            return None
        added[name] = value.narrow(axis, length, value.shape[axis] - length)
    return added
