"""PruningModule: the Lightning module that trains a pruner and evaluates it. Algorithms are in other rooms."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from typing_extensions import override

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.evaluation.answers import WrittenAnswers
from glimpse_lightning.evaluation.module import EvaluationModule
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.pruner.files import described_stages
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import release
from glimpse_lightning.runtime.ranks import any_rank, gathered
from glimpse_lightning.runtime.run_folder import common_folder
from glimpse_lightning.runtime.seeds import global_seed
from glimpse_lightning.scorers import Random
from glimpse_lightning.scorers.base import Scorer
from glimpse_lightning.training.annotations import Annotations
from glimpse_lightning.training.optimization import OptimizerOptions, adamw, configured, name_parameters, reconfigure

RECOMPUTES_SHARDED = torch.__version__ >= "2.11"
"""Whether torch gathers a sharded layer's parameters again where checkpointing computes it in the backward pass. 2.10
does not, 2.13 does; the versions between have not been tried.
"""
DATA = "data"
"""Key of a checkpoint's record of the training data: samples skipped, annotations never met."""
OBJECTIVE = "objective"
"""Key of the objective's state in a checkpoint, one state for each rank."""
WRITTEN = "full_answers"
"""Folder, among a recipe's runs, of the full model's answers to training questions that have none."""


class PruningModule(EvaluationModule):
    """Trains a pruner on a frozen vision-language model, and evaluates it against the full model and baselines.

    Args:
        objective: loss that training minimises; not needed for evaluation.
        optimizer: learning rate and its schedule.
        fit_baselines: scorers that the test at the end of `fit` compares with; default: Random.
        test_after_fit: whether `fit` ends with a test, as by default.
        activation_checkpointing: whether the decoder layers' activations are computed again in the backward pass
            instead of kept, which takes less memory and more time; off by default.
        args, kwargs: arguments of :class:`EvaluationModule`.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> module = gl.PruningModule(
        ...     "glimpse-tiny", after_layer=3, scorer=gl.scorers.VisionSelector(), policy=gl.policies.Threshold(),
        ...     objective=gl.objectives.KL(),
        ... )
        >>> train, val = gl.GlyphVQA("train", size=1), gl.GlyphVQA("val", size=1)
        >>> trainer = Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=1
        ... )
        >>> trainer.fit(module, gl.VQAData(train, val, batch_size=1, num_workers=0))
        >>> trainer.global_step
        1
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),
        fit_baselines: list[Scorer] | None = None,
        test_after_fit: bool = True,
        activation_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective
        self.optimizer_options = optimizer
        self.fit_baselines = fit_baselines
        self.test_after_fit = test_after_fit
        self.activation_checkpointing = activation_checkpointing
        self.remarks: list[str] = []
        self._ends_fit = False
        self._annotations: Annotations | None = None
        self._written: WrittenAnswers | None = None
        self._steps = {True: 0, False: 0}  # on blank batches, on others
        self._missing: list[str] | None = None
        self._configured: list[dict[str, Any]] = []

    # -- the model ----------------------------------------------------------------------------------------------

    @property
    @override
    def trainable(self) -> tuple[str, ...]:
        return () if self.objective is None else self.objective.trainable

    @property
    @override
    def backbone_options(self) -> dict[str, Any]:
        options = super().backbone_options
        if options["dtype"] is None and self.objective is not None and self.objective.trains_weights:
            options["dtype"] = "float32"  # half precision would round the steps of training to no change
        return options

    @override
    def configure_model(self) -> None:
        if self.vlm is None:
            super().configure_model()
            if self.objective is not None:
                self.objective.remember(self.model)

    @override
    def prepare(self, model: PrunedVLM) -> None:
        if self.activation_checkpointing and self.device_mesh is not None and not RECOMPUTES_SHARDED:
            raise GlimpseError(
                f"`model.activation_checkpointing` fails on a sharded model with torch {torch.__version__}: a layer "
                "that is computed again finds its parameters sharded. Update torch, or leave it out."
            )
        model.backbone.recompute = self.activation_checkpointing
        if self.objective is not None:
            self.objective.prepare(model)

    @property
    @override
    def learns(self) -> bool:
        """Whether weights have to be trained first: those of a new pruner, or those that the objective refines."""
        return (self.objective is not None and self.objective.refines) or super().learns

    @override
    def check_fit(self) -> None:
        """Raise where `fit` would train nothing or could not save it, which is known before the model is loaded.

        Raises:
            GlimpseError: without an objective, without anything for it to train, or with a part that cannot be saved.
        """
        if any(value is not None for value in self.budgets.values()):
            raise GlimpseError(
                "`model.retention` and `model.threshold` are budgets of `test` and `predict`. What a training aims at "
                "is said by its objective (`model.objective.retention`, in packaged recipes `--vars.retention`), and "
                "what it keeps by its policy."
            )
        objective = self._needed_objective()
        (pruner,) = self._source
        if isinstance(pruner, Pruner):
            described_stages(pruner.stages)  # before the training, and not after it
        only_pruner = all(pattern.startswith("pruner.") for pattern in objective.trainable)
        if objective.refines or not only_pruner or isinstance(pruner, str):
            return
        with torch.random.fork_rng(devices=[]):  # a copy: the pruner's own weights are drawn when the model is there
            if pruner is None or not self.has_weights(deepcopy(pruner)):
                raise self._nothing_to_train(objective)

    def _needed_objective(self) -> Objective:
        if self.objective is None:
            super().check_fit()
        assert self.objective is not None
        return self.objective

    def _nothing_to_train(self, objective: Objective) -> GlimpseError:
        return GlimpseError(
            f"Nothing to train: no parameter matches {type(objective).__name__}'s {objective.trainable}. Give a scorer "
            "that learns (VIP), or evaluate this recipe with `test`."
        )

    # -- training -----------------------------------------------------------------------------------------------

    @override
    def on_fit_start(self) -> None:
        objective = self._needed_objective()
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise self._nothing_to_train(objective)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._annotations = Annotations(objective, getattr(data, "train", None))
        if self._missing is not None:
            self._annotations.missing = self._missing
        self._steps = {True: 0, False: 0}
        self._written = None
        if objective.writes_answers:
            root = Path(self.trainer.default_root_dir)
            folder, run = common_folder(root) / WRITTEN, f"{root.name}.{self.global_rank}"
            self._written = WrittenAnswers(self.evaluator.full, folder, self.max_new_tokens, run)
        objective.start(self.model)

    @override
    def on_fit_end(self) -> None:
        self.model.eval()
        assert self.objective is not None
        self.share_skipped()
        if self._steps[True] and not any_rank(self._steps[False] > 0, self.device):
            raise GlimpseError(f"Expected at least one usable sample, but all are bad; one of them: {self.skipped[0]}")
        assert self._annotations is not None
        self.remarks = self._annotations.remarks(self.objective.needs, self.device) + self.objective.remarks()
        for remark in self.remarks:
            rank_zero_warn(remark)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = gathered([self.objective.state_dict() if self.objective is not None else {}])
        if any(states):
            checkpoint[OBJECTIVE] = states
        self.share_skipped()
        checkpoint[DATA] = {"skipped": self.skipped, "missing": self._annotations.missing if self._annotations else []}
        if not any(isinstance(value, DTensor) for value in checkpoint["state_dict"].values()):
            release(self)
            names = {id(parameter): name for name, parameter in self.named_parameters()}
            # A checkpoint of weights alone has no states.
            for state, optimizer in zip(checkpoint.get("optimizer_states", []), self.trainer.optimizers, strict=False):
                ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
                name_parameters(state, ordered)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == "fit":
            data = checkpoint.get(DATA, {})
            self.skipped, self._missing = list(data.get("skipped", [])), data.get("missing")
        states = checkpoint.get(OBJECTIVE, [])
        if self.objective is not None and states:
            same_ranks = len(states) == self.trainer.world_size
            self.objective.load_state_dict(states[self.global_rank if same_ranks else 0], same_ranks)

    @property
    @override
    def repeats(self) -> int:
        return 1 if self.objective is None else self.objective.repeats

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.objective is not None
        # All randomness in a step follows from the seed and the step alone, so that a resumed run repeats it.
        step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        # The offset of a rank exceeds those of seeds and steps: no rank repeats another one's draws of the next seed.
        torch.manual_seed(global_seed() + 1_000_003 * step + 1_000_000_000_000_003 * self.global_rank)
        self.objective.progress = self.global_step / max(1, self._total_steps)
        if self._written is not None:
            batch = self._written.filled(batch)
        if self._annotations is not None:
            self._annotations.see(batch.samples)
        result = self.objective.step(self.model, batch)
        self._steps[batch.blank] += 1
        if batch.blank:
            result.loss = 0.0 * result.loss
        if not torch.isfinite(result.loss):
            raise GlimpseError(
                f"The loss of step {self.global_step} is {result.loss.item()} on samples "
                f"{', '.join(sample.id for sample in batch.samples)}. Look at these, or lower "
                "`model.optimizer.lr`; `trainer.gradient_clip_val: 1.0` and `trainer.precision: 32` also help. The "
                "same command goes on from the last checkpoint."
            )
        for name, value in {"loss": result.loss, **result.logs}.items():
            shown = name == "loss" or name in self.objective.shown
            self.log(f"train/{name}", value.detach(), prog_bar=shown, batch_size=len(batch.samples))
        return result.loss

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the gradients, before they are clipped, in those steps whose figures are logged."""
        often: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        flattened = isinstance(self.trainer.strategy, FSDPStrategy)  # each rank has a part, across parameters
        if often and not flattened and (self.global_step + 1) % often == 0:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            norm = get_total_norm(grads)
            self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @property
    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if math.isfinite(steps) else self.global_step + 1

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.vlm is not None
        trained = {name: parameter for name, parameter in self.vlm.named_parameters() if parameter.requires_grad}
        made: Any = adamw(trained, self.optimizer_options, self._total_steps)
        self._configured = configured(made["optimizer"])
        return made

    @override
    def on_train_start(self) -> None:
        """Apply the configured optimizer settings, which overrule those of a checkpoint."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        changes = reconfigure(optimizer, self.lr_schedulers(), self._configured)
        if changes:
            rank_zero_info(f"The optimizer goes on as configured, not as in the checkpoint: {', '.join(changes)}.")

    # -- the test at the end --------------------------------------------------------------------------------------

    @property
    @override
    def compared(self) -> list[Scorer] | None:
        if not self._ends_fit:
            return super().compared
        return [Random()] if self.fit_baselines is None else self.fit_baselines

    def test_fit(self, trainer: Trainer, data: LightningDataModule | None) -> None:
        """Test a fit's result with `fit_baselines`, on the data module's `fit_test_size` questions."""
        data = data.of_fit_test() if isinstance(data, VQAData) else data
        self._ends_fit = True
        try:
            trainer.test(self, datamodule=data, verbose=False)
        finally:
            self._ends_fit = False
