"""The interface of training objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM


@dataclass
class StepResult:
    """Result of one training step.

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
        progress: share of the training done, in [0, 1]; set by the module before every step, read by schedules.
        repeats: number of steps in a row on each batch.
        shown: names of logs that the progress bar shows.
        needs: annotations of samples (``boxes``, ``answers``) that it learns from; samples without them add nothing.
        writes_answers: whether samples without answers get those that the full model writes.
        trains_weights: whether it trains weights of the model itself (not adapters), which half precision would round
            to no change.
        refines: whether it starts from weights that exist already (a saved pruner, the language model), so that `test`
            without a fit would not evaluate its result.

    Examples:
        >>> class SquaredError(gl.Objective):  # squared error of the softly pruned model's logits to the full model's
        ...     def step(self, model, batch):
        ...         out = model.distill(batch, lambda scores, stage: torch.nn.functional.logsigmoid(scores))
        ...         return gl.objectives.StepResult((out.student_logits - out.teacher_logits).square().mean())
        >>> stage = gl.PruneStage(after_layer=3, scorer=gl.scorers.VisionSelector(), policy=gl.policies.Threshold())
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> SquaredError().step(model, model.backbone.collate([gl.GlyphVQA("train")[0]])).loss.requires_grad
        True
    """

    trainable: tuple[str, ...] = ("pruner.*",)
    progress: float = 0.0
    repeats: int = 1
    shown: tuple[str, ...] = ("kl", "mask", "reward", "hard_retention")
    needs: tuple[str, ...] = ()
    writes_answers: bool = False
    refines: bool = False

    @property
    def trains_weights(self) -> bool:
        return False

    def prepare(self, model: PrunedVLM) -> None:
        """Called once, when the model has been built and nothing has been loaded into it yet; sets ``trainable``."""

    def remember(self, model: PrunedVLM) -> None:
        """Called once after ``prepare``, when parameters are in their final place (under FSDP2: sharded), before
        anything is loaded into them.
        """

    def start(self, model: PrunedVLM) -> None:
        """Called when training starts or goes on, with the whole model in evaluation mode."""
        if model.pruner is not None:  # pruners start in evaluation mode, and Lightning keeps each module's
            model.pruner.train()

    def save(self, model: PrunedVLM, folder: Path, write: bool = True) -> None:
        """Write trained weights other than the pruner's to the run's ``folder``; called on all ranks, ``write`` true
        on one.
        """

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any], same_ranks: bool = True) -> None:
        """Restore the state that :meth:`state_dict` gave on this rank; where another number of ranks saved it
        (``same_ranks`` is false), the first rank's.
        """

    def remarks(self) -> list[str]:
        """Remarks for the user on a training that has ended, a paragraph each; called on all ranks."""
        return []

    @abstractmethod
    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """Loss and logs of one batch."""
