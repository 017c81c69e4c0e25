"""The phases of a pass, found with hooks: the same rule reads Hugging Face's own forward and the pruned one.

* ``preparation``: all else before decoder layer 0: patches, merger, embedding, positions, masks; of Hugging Face's
  ``generate`` also its own set-up, which comes after the prefill in ``PrunedVLM.generate`` (both are in TTFT).
* ``vision``: the blocks of the vision tower, and the capture of states for the scorer.
* ``prefill_to_k``: decoder layers on all tokens, and on the glimpse token; of a plain model, the whole decoder.
* ``scoring``: the pruner's work between the layers: scorer, policy, reducer, compaction, and the glimpse tokens of
  later stages, where each stage has its own.
* ``prefill_after_k``: decoder layers after the first stage, final norm and head.

The end is the end of the language-model head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.pruner.pruner import Pruner

PREPARATION, VISION, BEFORE, SCORING, AFTER = PHASES = (
    "preparation", "vision", "prefill_to_k", "scoring", "prefill_after_k",
)  # fmt: skip
T = TypeVar("T")


class PhaseRecorder(Generic[T]):
    """Stamps the beginning of every stretch of a phase.

    Args:
        backbone: the model whose modules run.
        pruner: the pruner whose stages run; ``None`` for a plain model.
        stamp: function that reads the measured quantity, such as a clock or a counter.

    Attributes:
        stretches: (phase, stamp at its begin), in order.
        end: stamp at the end of the prefill; ``None`` before.
    """

    def __init__(self, backbone: Backbone, pruner: Pruner | None, stamp: Callable[[], T]) -> None:
        self.layers = backbone.layers
        self.head = backbone.lm_head
        self.vision = list(getattr(backbone, "vision_blocks", ()))
        self.stages = [] if pruner is None else list(pruner.stages)
        self.stamp = stamp
        self.stretches: list[tuple[str, T]] = []
        self.end: T | None = None
        self._layer = -1
        self._scored = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While the context is open, the first prefill is stamped; later calls of the layers (decoding) are not."""
        with ExitStack() as hooks:
            for index, layer in enumerate(self.layers):
                hooks.callback(layer.register_forward_pre_hook(self._entering(index)).remove)
                hooks.callback(layer.register_forward_hook(self._left).remove)
            for stage in self.stages:
                hooks.callback(stage.scorer.register_forward_pre_hook(self._scoring).remove)
            hooks.callback(self.head.register_forward_hook(self._finish).remove)
            if self.vision:
                hooks.callback(self.vision[0].register_forward_pre_hook(self._seeing).remove)
                hooks.callback(self.vision[-1].register_forward_hook(self._seen).remove)
            self._begin(PREPARATION)
            yield

    def _seeing(self, *_: Any) -> None:
        self._begin(VISION)

    def _seen(self, *_: Any) -> None:
        self._begin(PREPARATION)

    def _finish(self, *_: Any) -> None:
        if self.end is None:
            self.end = self.stamp()

    def spent(self, difference: Callable[[T, T], float]) -> dict[str, float]:
        """Amount of each phase; 0.0 where it did not occur."""
        total = dict.fromkeys(PHASES, 0.0)
        stamps = [*(stamp for _, stamp in self.stretches), self.end]
        for (phase, begin), end in zip(self.stretches, stamps[1:], strict=True):
            assert end is not None
            total[phase] += difference(begin, end)
        return total

    def _begin(self, phase: str) -> None:
        if self.end is None and (not self.stretches or self.stretches[-1][0] != phase):
            self.stretches.append((phase, self.stamp()))

    def _entering(self, index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if index != self._layer:  # a second call of the same layer is a side stream's
                self._layer = index
                self._begin(AFTER if self._scored else BEFORE)

        return hook

    def _left(self, *_: Any) -> None:
        if self._scored < len(self.stages):
            self._begin(SCORING)

    def _scoring(self, *_: Any) -> None:
        self._begin(SCORING)
        self._scored += 1
