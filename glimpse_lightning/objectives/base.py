"""What a training objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model import PrunedVLM


@dataclass
class StepResult:
    """What one training step yields.

    Attributes:
        loss: scalar to minimise.
        logs: scalars to log, by name.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """One training step.

    Attributes:
        trainable: glob patterns (``fnmatch``) over the names of ``PrunedVLM.named_parameters()``; parameters that
            match one are trained, all others frozen. Pruner parameters start with ``pruner.``, the Hugging Face
            model's with ``model.``.
        progress: share of the training done, in [0, 1]; set by the module before every step, read by whatever anneals.
    """

    trainable: tuple[str, ...] = ("pruner.*",)
    progress: float = 0.0

    @abstractmethod
    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """Loss and logs of one batch."""
