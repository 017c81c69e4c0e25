"""The parts of a model that an objective of the answers trains, and the frozen reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from glimpse_lightning.backbones.lora import LoRA, add_lora, lora_modules, save_lora, without_lora
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import full_state, release

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM

Part = Literal["language_model", "pruner"]


class AnswerObjective(Objective):
    """An objective that trains the language model (all of it, or LoRA adapters in it), the pruner, or both.

    Args:
        train: ``language_model``, ``pruner`` or both. The vision tower is frozen.
        lora: adapters that are trained in place of the language model's own weights; by default these are trained.
    """

    refines = True

    def __init__(self, train: Sequence[Part] = ("language_model",), lora: LoRA | None = None) -> None:
        unknown = sorted(set(train) - {"language_model", "pruner"})
        if unknown or not train:
            raise ValueError(f"Expected `train` to name language_model, pruner or both, but got {list(train)}.")
        if lora is not None and "language_model" not in train:
            raise ValueError("Expected `lora` only where `train` has language_model; leave it out, or add that.")
        self.train = tuple(train)
        self.lora = lora
        self._reference: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def trains_language_model(self) -> bool:
        return "language_model" in self.train

    @property
    @override
    def trains_weights(self) -> bool:
        return self.trains_language_model and self.lora is None

    @property
    def trains_pruner(self) -> bool:
        return "pruner" in self.train

    def prepare(self, model: PrunedVLM) -> None:
        """Add the adapters, and set the patterns of trained parameters."""
        patterns = []
        if self.trains_pruner:
            if model.pruner is None or next(model.pruner.parameters(), None) is None:
                raise GlimpseError("Expected a pruner with weights, as `train` has pruner; give one, or leave it out.")
            patterns.append("pruner.*")
        if self.lora is not None:
            add_lora(model.backbone, self.lora)
            patterns.append("model.*.lora_*")
        elif self.trains_weights:
            parts = (model.backbone.decoder, model.backbone.lm_head)
            patterns += [f"model.{name}.*" for name, module in model.model.named_modules() if module in parts]
        self.trainable = tuple(patterns)

    def start(self, model: PrunedVLM) -> None:
        """Switch dropout on in the adapters only, so that rollouts and training use one distribution."""
        for module in lora_modules(model.backbone):
            module.lora_dropout.train()

    @torch.no_grad()
    def seen(self, model: PrunedVLM, batch: Batch, copies: int = 1) -> Batch:
        """The batch with everything untrained that is equal in each forward of a step, computed once.

        Args:
            copies: number of times that each prompt stands in these forwards.
        """
        if model.trains_embeddings:
            batch = replace(batch, vision_output=model.backbone.visuals(batch.inputs, model.vision_layers))
            return replace(batch, shared=SharedPrefix.of(model.backbone, model.embed(batch), copies))
        prompt = model.embed(batch)
        return replace(batch, prompt=prompt, shared=SharedPrefix.of(model.backbone, prompt, copies))

    def keep_reference(self, model: PrunedVLM) -> None:
        """Remember the language model's weights as they are now; adapters need no copy."""
        if self.trains_weights:
            owned = {id(p): p for part in (model.backbone.decoder, model.backbone.lm_head) for p in part.parameters()}
            self._reference = [(parameter, parameter.detach().clone()) for parameter in owned.values()]

    @contextmanager
    def reference(self, backbone: Backbone) -> Iterator[None]:
        """Give the language model its weights from before training while the context is open. No graph may be alive."""
        with torch.no_grad(), without_lora(backbone):
            if self._reference:
                release(backbone.model)
            trained = [parameter.detach().clone() for parameter, _ in self._reference]
            for parameter, value in self._reference:
                parameter.copy_(value)
            try:
                yield
            finally:
                if self._reference:
                    release(backbone.model)
                for (parameter, _), value in zip(self._reference, trained, strict=True):
                    parameter.copy_(value)

    def save(self, model: PrunedVLM, folder: Path, write: bool = True) -> None:
        """Write the trained weights of the language model: ``adapter/`` in PEFT's format, or ``model/`` in Hugging
        Face's.
        """
        if self.lora is not None:
            save_lora(model.backbone, folder / "adapter", write)
        elif self.trains_weights:
            weights = full_state(model.backbone.model, keep=write)
            if write:
                model.backbone.save(folder / "model", weights)
