"""Answers of several methods to one question, with what each of them kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from PIL.Image import Image

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.core.token_counts import SampleCounts
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.evaluation.answers import greedy
from glimpse_lightning.evaluation.evaluator import left_by_stage, token_counts
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError

FULL = "all tokens"
"""Name of the row without pruning."""


@dataclass(frozen=True)
class Shown:
    """A method's answer.

    Attributes:
        method: the method's name.
        text: the answer; where there is none, why not.
        total: visual tokens of the image.
        stages: for each stage the layer after which it prunes and the number of tokens left.
        counts: tokens and FLOPs; ``None`` without an answer.
        seconds: time of prefill and answer. The vision tower, which all methods share, is not in it.
        overlays: a picture of what is left after each stage.
    """

    method: str
    text: str
    total: int = 0
    stages: list[tuple[int, int]] = field(default_factory=list)
    counts: SampleCounts | None = None
    seconds: float = 0.0
    overlays: list[Image] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.counts is None


class Methods:
    """Pruners side by side on one backbone, asked one question at a time.

    Args:
        backbone: the model.
        pruners: pruners by the name of their method.
        max_new_tokens: longest answer, in tokens.
    """

    def __init__(self, backbone: Backbone, pruners: Mapping[str, Pruner], max_new_tokens: int = 64) -> None:
        self.models = {FULL: PrunedVLM(backbone)}
        self.models |= {name: PrunedVLM(backbone, pruner) for name, pruner in pruners.items()}
        for model in self.models.values():
            model.requires_grad_(False).eval()
        self.backbone, self.max_new_tokens = backbone, max_new_tokens
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the methods, the full model left out."""
        return [name for name in self.models if name != FULL]

    def ask(
        self,
        image: Image,
        question: str,
        names: Sequence[str],
        retention: float | None = None,
        threshold: float | None = None,
    ) -> list[Shown]:
        """The full model's answer, then one of each method in ``names``.

        A method without such a budget has the reason in the place of its answer, and the others answer.

        Args:
            image: the picture, as RGB.
            question: the question.
            names: the methods to compare.
            retention: share of the tokens to keep, in the place of each method's own budget.
            threshold: threshold of ``Threshold`` policies, likewise.

        Raises:
            GlimpseError: where the model cannot read the question, or there is no such method.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise GlimpseError(f"Expected a method out of {', '.join(self.names)}, but got {unknown[0]!r}.")
        models = {name: self.models[name] for name in (FULL, *names)}
        taps = tuple(dict.fromkeys(tap for model in models.values() for tap in model.vision_layers))
        with self._lock, torch.no_grad():
            batch = self.backbone.collate([Sample(question=question, images=[image])])
            inputs: dict[str, Any] = move_data_to_device(batch.inputs, self.backbone.model.device)
            prompt = self.backbone.embed(inputs, taps)
            shown = []
            for name, model in models.items():
                budgets = (None, None) if name == FULL else (retention, threshold)
                start = time.perf_counter()
                try:
                    out = model.prefill(
                        prompt=prompt, questions=[question], retention=budgets[0], threshold=budgets[1], **inputs
                    )
                except (GlimpseError, ValueError) as error:
                    shown.append(Shown(name, str(error)))
                else:
                    shown.append(self._answered(name, model, image, out, start))
            return shown

    def _answered(self, name: str, model: PrunedVLM, image: Image, out: PrefillOutput, start: float) -> Shown:
        """The answer from a prefill that began at ``start`` by ``time.perf_counter``."""
        text = self.backbone.decode(greedy(model, out, self.max_new_tokens))[0]
        seconds = time.perf_counter() - start
        stages = [] if model.pruner is None else model.pruner.stages
        return Shown(
            name,
            text,
            total=len(out.tokens.item),
            stages=list(zip((stage.after_layer for stage in stages), left_by_stage(out, 1)[0], strict=True)),
            counts=token_counts(model, out, 1)[0],
            seconds=seconds,
            overlays=[out.show(image, stages=number + 1) for number in range(len(stages))],
        )
