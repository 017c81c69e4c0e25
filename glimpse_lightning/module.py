"""PruningModule: the Lightning side of training and evaluating a pruner. It owns no algorithm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed
from torch.distributed import DeviceMesh
from torch.distributed.tensor import DTensor
from typing_extensions import override

from glimpse_lightning.annotations import Annotations
from glimpse_lightning.answers import WrittenAnswers
from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.load import source_of
from glimpse_lightning.backbones.presets import PREFIX
from glimpse_lightning.backbones.shares import load_shares
from glimpse_lightning.checkpoints import load_pruner
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.datamodule import RawBatch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.errors import GlimpseError, RefusedSamplesError
from glimpse_lightning.evaluation import (
    Evaluator,
    as_many,
    baseline_models,
    kept_by_item,
    left_by_stage,
    training_free_scorers,
)
from glimpse_lightning.gathering import release
from glimpse_lightning.layers import Layer
from glimpse_lightning.metrics import AnswerMetric, ExactMatch
from glimpse_lightning.model import PrunedVLM
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.objectives.rollouts import one_more
from glimpse_lightning.optimization import OptimizerOptions, adamw, configured, name_parameters, reconfigure
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.pruner import EarlyKV, Positions, Pruner, PruneStage
from glimpse_lightning.ranks import any_rank
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.resolution import ResolutionCut
from glimpse_lightning.results import Record, Summary, gathered
from glimpse_lightning.scorers.base import Scorer
from glimpse_lightning.seeds import global_seed
from glimpse_lightning.sharding import shard
from glimpse_lightning.sharing import SharedQuestions
from glimpse_lightning.source import Source

RECOMPUTES_SHARDED = torch.__version__ >= "2.11"
"""Whether torch gathers a sharded layer's parameters again where checkpointing computes it in the backward pass. 2.10
does not, 2.13 does; the versions between have not been tried.
"""
REMEMBERED = 1e9
"""Bytes that questions of a test may take in main memory until the baselines are asked them."""
DATA = "data"
"""Under which a checkpoint holds what training has met in its data."""
OBJECTIVE = "objective"
"""Under which a checkpoint holds the objective's state, one for each rank."""
WRITTEN = "full_answers"
"""Folder, among a recipe's runs, of the full model's answers to training questions that have none."""
GATHERED: dict[Any, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""In which type sharded weights travel, by the trainer's precision; they are kept, and summed up, in their own."""


class PruningModule(LightningModule):
    """Trains a pruner on a frozen vision-language model, and evaluates it against the full model and baselines.

    Give one stage as ``after_layer``, ``scorer``, ``policy`` and ``reducer``; or several as ``stages``; or a saved
    pruner as ``pruner``; or nothing, for the full model alone.

    Args:
        backbone: ``glimpse-tiny``, a hub id or a folder; in Python also a loaded backbone.
        dtype: data type of the backbone's weights; default: as they were saved, and float32 for glimpse-tiny and where
            the objective trains them; `auto`: as they were saved, but float32 in place of half precision where the
            device is slow at it.
        attn_implementation: attention kernel of the backbone; or one for each part of it, as ``{text_config: eager,
            vision_config: sdpa}``.
        processor: settings of the backbone's image processor by name: `{min_pixels: 200704, max_pixels: 1605632}` for
            Qwen-VL, `{do_pad: true}` for LLaVA-1.5; default: as saved with it.
        source: version (`revision`) of the backbone on the Hub, and where downloads are kept.
        after_layer: 0-based index of the last decoder layer that runs on all tokens; -1 = prune before layer 0;
            between 0 and 1 = the share of the layers that do.
        scorer: scores each visual token.
        policy: turns scores into a keep mask.
        reducer: what becomes of dropped tokens; default: gone.
        early_kv: whether layers up to ``after_layer`` `keep` the keys and values of dropped tokens; default: `prune`.
        positions: `keep` the kept tokens' positions (default), or `renumber` them.
        stages: several prune stages, in order.
        resolution: shrink images instead (`{ratio: 0.11}` or `{max_pixels: 50176}`), in place of anything that prunes;
            the full model still sees whole images, and tokens are counted against theirs.
        pruner: folder or hub id of a saved pruner, with its own layers, scorers and policies; with ``policy``, under
            that one.
        pruner_source: version of the saved pruner on the Hub, and where downloads are kept.
        objective: what training minimises; not needed for evaluation.
        optimizer: learning rate and its schedule.
        metric: how an answer is scored; default: ExactMatch.
        max_new_tokens: longest answer.
        baselines: scorers that `test` compares with, after the same layers, each question with as many tokens as the
            pruner keeps of it; default: every one that needs no training.
        fit_baselines: those that the test at the end of `fit` compares with; default: Random.
        test_after_fit: whether `fit` ends with a test.
        activation_checkpointing: compute the decoder layers' activations again in the backward pass instead of keeping
            them: less memory, more time.
        allow_empty: permit policies that may keep nothing and layers beyond the model (methods like VTW).
        any_backbone: take a saved pruner that was trained on a backbone of other weights.
    """

    def __init__(
        self,
        backbone: str = "glimpse-tiny",
        dtype: str | None = None,
        attn_implementation: str | dict[str, str] = "sdpa",
        processor: dict[str, Any] | None = None,
        source: Source = Source(),
        after_layer: Layer | None = None,
        scorer: Scorer | None = None,
        policy: Policy | None = None,
        reducer: Reducer | None = None,
        early_kv: EarlyKV | None = None,
        positions: Positions | None = None,
        stages: list[PruneStage] | None = None,
        pruner: str | None = None,
        pruner_source: Source = Source(),
        resolution: ResolutionCut | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),
        metric: AnswerMetric | None = None,
        max_new_tokens: int = 32,
        baselines: list[Scorer] | None = None,
        fit_baselines: list[Scorer] | None = None,
        test_after_fit: bool = True,
        activation_checkpointing: bool = False,
        allow_empty: bool = False,
        any_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold trained parameters only; `load_state_dict` checks them itself
        if dtype is None and objective is not None and objective.trains_weights:
            dtype = "float32"  # the steps of training are too small for half precision
        self.backbone_options: dict[str, Any] = {
            "dtype": dtype, "attn_implementation": attn_implementation, "processor": processor, **source.options()
        }  # fmt: skip
        if isinstance(backbone, Backbone) and (processor or source.options()):
            raise GlimpseError(
                "Expected `processor` and `source` with the name of a backbone, but got a loaded one: they are "
                "arguments of `load_backbone`."
            )
        if pruner is None and pruner_source.revision is not None:
            raise GlimpseError("Expected `model.pruner` to say what `model.pruner_source` is of, but got none.")
        self.pruner_source = pruner_source
        self.backbone: str | Backbone = backbone
        self.allow_empty = allow_empty
        self.any_backbone = any_backbone
        self.activation_checkpointing = activation_checkpointing
        # In a tuple, or it would be registered a second time beside `vlm.pruner`.
        self._policy = policy if pruner else None
        single = {"after_layer": after_layer, "scorer": scorer, "policy": None if pruner else policy}
        options = {"reducer": reducer, "early_kv": early_kv, "positions": positions}
        self._source = (_pruner_source(single, options, stages, pruner),)
        self.resolution = resolution
        if resolution is not None and self._source[0] is not None:
            raise GlimpseError("`model.resolution` takes the place of what prunes; drop it, or the pruner.")
        self.objective = objective
        self.optimizer_options = optimizer
        self.metric = metric
        if max_new_tokens < 1:
            raise GlimpseError(f"Expected `model.max_new_tokens` to be at least 1, but got {max_new_tokens}.")
        self.max_new_tokens = max_new_tokens
        self.baselines = baselines
        self.fit_baselines = fit_baselines
        self.test_after_fit = test_after_fit
        self.testing_after_fit = False
        self.vlm: PrunedVLM | None = None
        self.summary: Summary | None = None
        self.skipped: list[str] = []
        self.remarks: list[str] = []
        self.shared: SharedQuestions | None = None
        self.remembered = SharedQuestions(limit=REMEMBERED)
        self._annotations: Annotations | None = None
        self._written: WrittenAnswers | None = None
        self.written_folder: Path | None = None
        self._steps = {True: 0, False: 0}  # on blank batches, on others
        self._missing: list[str] | None = None
        self._configured: list[dict[str, Any]] = []
        self._records: list[Record] = []
        self._baseline_records: dict[str, list[Record]] = {}
        self._rivals: dict[str, PrunedVLM] = {}
        self._left: list[list[tuple[str, list[int]]]] = []  # by batch: questions, and tokens left behind each stage

    # -- the model ----------------------------------------------------------------------------------------------

    @override
    def configure_model(self) -> None:
        """Load the backbone and build the pruner for it; does nothing the second time."""
        if self.vlm is not None:
            return
        backbone, later = self.backbone, None
        if isinstance(backbone, str):
            if self.device_mesh is not None and not backbone.startswith(PREFIX):
                later = source_of(backbone)  # each rank loads its share once it knows which that is
            placement: dict[str, Any] = {"device_map": "meta"} if later else {}
            backbone = load_backbone(backbone, **self.backbone_options, **placement)
        backbone.recompute = self.activation_checkpointing
        (source,) = self._source
        pruner = self._load_pruner(source) if isinstance(source, str) else source
        if isinstance(source, Pruner) and not self.allow_empty:
            _check_recipe(source, len(backbone.layers))
        vlm = PrunedVLM(backbone, pruner)
        if pruner is not None:
            layers = ", ".join(str(stage.after_layer) for stage in pruner.stages)
            rank_zero_info(f"Visual tokens are pruned after layer {layers} of {len(backbone.layers)}, counted from 0.")
        if self.objective is not None:
            self.objective.prepare(vlm)
        patterns = self.objective.trainable if self.objective is not None else ()
        for name, parameter in vlm.named_parameters():
            parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in patterns))
        if self.device_mesh is not None:
            self._shard(vlm, self.device_mesh, later)
        if self.objective is not None:
            self.objective.remember(vlm)
        self.vlm = vlm
        self.evaluator = Evaluator(PrunedVLM(backbone), self.metric or ExactMatch(), self.max_new_tokens, self.shared)

    def _shard(self, vlm: PrunedVLM, mesh: DeviceMesh, source: str | None) -> None:
        if mesh.size(1) > 1:
            raise GlimpseError(
                f"Expected `tensor_parallel_size: 1`, but got {mesh.size(1)}: the engine is sharded over samples only. "
                "Use the overlay recipes/trainer/fsdp2.yaml, which sets it."
            )
        if self.activation_checkpointing and not RECOMPUTES_SHARDED:
            raise GlimpseError(
                f"`model.activation_checkpointing` fails on a sharded model with torch {torch.__version__}: a layer "
                "that is computed again finds its parameters sharded. Update torch, or leave it out."
            )
        for parameter in vlm.parameters():  # what was drawn at random must be the same everywhere
            if parameter.requires_grad and not parameter.is_meta:
                parameter.data = parameter.data.to(self.trainer.strategy.root_device)
                distributed.broadcast(parameter.data, 0)
        fill = None if source is None else partial(load_shares, vlm.backbone, source, **self.backbone_options)
        shard(vlm, mesh["data_parallel"], GATHERED.get(self.trainer.precision), fill)

    def _load_pruner(self, source: str) -> Pruner:
        pruner = load_pruner(source, self.any_backbone, **self.pruner_source.options())
        if self._policy is not None:
            if len(pruner.stages) > 1:
                raise GlimpseError(
                    f"Expected a pruner of one stage where `model.policy` replaces its policy, but {source} has "
                    f"{len(pruner.stages)}; leave `model.policy` out."
                )
            pruner.stages[0].policy = self._policy
        return pruner

    @property
    def learns(self) -> bool:
        """Whether weights have to be trained that nothing saved brings: a new pruner's, or what is refined."""
        if self.objective is not None and self.objective.refines:
            return True
        (pruner,) = self._source
        return isinstance(pruner, Pruner) and self._has_weights(pruner)

    def _has_weights(self, pruner: Pruner) -> bool:
        if pruner.facts is None:  # the model itself is loaded once the strategy is known, which may shard it
            backbone = self.backbone
            if isinstance(backbone, str):
                backbone = load_backbone(backbone, **self.backbone_options, device_map="meta")
            pruner.build(backbone.facts)
        return next(pruner.parameters(), None) is not None

    def check_fit(self) -> None:
        """Raise where `fit` would train nothing, which is known before the model is loaded.

        Raises:
            GlimpseError: without an objective, or without anything for it to train.
        """
        objective = self._needed_objective()
        (pruner,) = self._source
        only_pruner = all(pattern.startswith("pruner.") for pattern in objective.trainable)
        if objective.refines or not only_pruner or isinstance(pruner, str):
            return
        with torch.random.fork_rng(devices=[]):  # a copy: the pruner's own weights are drawn when the model is there
            if pruner is None or not self._has_weights(deepcopy(pruner)):
                raise self._nothing_to_train(objective)

    def _needed_objective(self) -> Objective:
        if self.objective is None:
            raise GlimpseError("Expected `model.objective` for `fit`, but got none; evaluate this recipe with `test`.")
        return self.objective

    def _nothing_to_train(self, objective: Objective) -> GlimpseError:
        return GlimpseError(
            f"Nothing to train: no parameter matches {type(objective).__name__}'s {objective.trainable}. Give a scorer "
            "that learns (VIP), or evaluate this recipe with `test`."
        )

    @property
    def prunes(self) -> bool:
        """Whether anything makes visual tokens fewer: a pruner, or smaller images."""
        return self.resolution is not None or self.model.pruner is not None

    @property
    def model(self) -> PrunedVLM:
        """Backbone and pruner; there once :meth:`configure_model` has run."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The parameters that are trained, and the pruner's buffers; nothing of the frozen backbone."""
        state = super().state_dict(*args, **kwargs)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained or name.startswith("vlm.pruner.")}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` gave, if :meth:`check_state` has no objection."""
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise GlimpseError where names or shapes are those of another pruner or backbone."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state_dict)) or [
            name for name, value in state_dict.items() if own[name].shape != value.shape
        ]
        if wrong:
            raise GlimpseError(
                f"This checkpoint holds other trained parameters than this recipe's pruner on this backbone has: "
                f"{len(wrong)} differ, the first is {wrong[0]!r}. Use the recipe and the backbone it was trained with."
            )

    # -- data ---------------------------------------------------------------------------------------------------

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Samples from the workers through the processor; those that it refuses are left out, where that is asked."""
        if isinstance(batch, Batch):
            return batch
        raw = batch if isinstance(batch, RawBatch) else RawBatch(list(batch), [1.0] * len(batch))
        if raw.error is not None:
            raise GlimpseError(raw.error)
        try:
            collated = self.model.backbone.collate(raw.samples)
        except RefusedSamplesError as error:
            if raw.on_error != "skip":
                raise
            raw = raw.without(error.reasons)
            collated = self.model.backbone.collate(raw.samples)
        for message in raw.skipped:
            if message not in self.skipped:
                self.skipped.append(message)
                warnings.warn(f"Skipped a bad sample ({len(self.skipped)} so far): {message}", stacklevel=2)
        collated.weight = torch.tensor(raw.weight)
        if self.model.sharded and collated.answer_ids.shape[1] == 1:
            # No token of such an answer runs through the layers, and other ranks would wait for this one.
            collated.answer_ids, collated.answer_mask = one_more(collated.answer_ids), one_more(collated.answer_mask)
        return collated

    def _share_skipped(self) -> None:
        """Have every rank know what all of them have skipped."""
        self.skipped = list(dict.fromkeys(gathered(self.skipped)))

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # A new batch: one that several models share stays where it is.
        return replace(
            batch,
            inputs={name: value.to(device) for name, value in batch.inputs.items()},
            prompt=None if batch.prompt is None else batch.prompt.to(device),
            **{name: getattr(batch, name).to(device) for name in ("answer_ids", "answer_mask", "key", "weight")},
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
            folder, run = self.written_folder or root / WRITTEN, f"{root.name}.{self.global_rank}"
            self._written = WrittenAnswers(self.evaluator.full, folder, self.max_new_tokens, run)
        objective.start(self.model)

    @override
    def on_fit_end(self) -> None:
        self.model.eval()
        assert self.objective is not None
        self._share_skipped()
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
        self._share_skipped()
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

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.objective is not None
        # Whatever is random in a step follows from the seed and the step alone, so that a resumed run repeats it.
        step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        # Ranks lie further apart than seeds and steps do: no rank draws what another one draws under the next seed.
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
            shown = name in ("loss", "kl", "mask", "reward", "hard_retention")
            self.log(f"train/{name}", value.detach(), prog_bar=shown, batch_size=len(batch.samples))
        return result.loss

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
        """What is configured goes before what a checkpoint has brought along."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        changes = reconfigure(optimizer, self.lr_schedulers(), self._configured)
        if changes:
            rank_zero_info(f"The optimizer goes on as configured, not as in the checkpoint: {', '.join(changes)}.")

    # -- evaluation ---------------------------------------------------------------------------------------------

    @property
    def test_passes(self) -> int:
        """How often the test split is gone through: baselines keep as many tokens as the pruned model has kept."""
        chosen = self.fit_baselines if self.testing_after_fit else self.baselines
        return 1 if chosen == [] or (self.vlm is not None and self.vlm.pruner is None) else 2

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        records, out = self.evaluator.evaluate(self.model, batch, resolution=self.resolution)
        self._records += records
        if self._rivals:
            counts = left_by_stage(out, len(batch.samples))
            self._left.append([(sample.id, left) for sample, left in zip(batch.samples, counts, strict=True)])
        return {"records": records, "kept": kept_by_item(out)}

    def _start_evaluation(self) -> None:
        self._records, self._baseline_records, self._rivals, self._left = [], {}, {}, []
        release(self)
        if any(p.requires_grad for name, p in self.model.named_parameters() if name.startswith("model.")):
            self.evaluator.cache.clear()  # the full model itself is being trained

    def _finish_evaluation(self, stage: str) -> None:
        release(self)  # optimizers and checkpoints know the shards only
        records = gathered(self._records)
        self._share_skipped()
        if self.skipped and not records:
            raise GlimpseError(f"Expected at least one usable sample, but all are bad; one of them: {self.skipped[0]}")
        self.summary = Summary(records, {name: gathered(records) for name, records in self._baseline_records.items()})
        figures = {f"{stage}/{name}": value for name, value in self.summary.metrics.items()}
        for family, metrics in self.summary.families.items():
            figures |= {f"{stage}_{name}/{family}": metrics[name] for name in ("accuracy", "retention", "agreement")}
        scalars = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
        self.log_dict(scalars, rank_zero_only=False, sync_dist=False)

    @override
    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    @override
    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    @override
    def on_test_epoch_start(self) -> None:
        self._start_evaluation()
        if self.test_passes > 1:
            self._rivals = baseline_models(self.model, self._rival_scorers())
        if self.shared is not None:
            self.shared.start()
        elif self._rivals and not self.model.sharded:  # sharded ranks must embed as often as each other
            taps = (tap for rival in self._rivals.values() for tap in rival.vision_layers)
            self.remembered.taps = tuple(dict.fromkeys(taps))
            self.remembered.start()
            self.evaluator.shared = self.remembered

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any] | None:
        """First pass: full and pruned model; second pass: the baselines, with as many tokens as the first has kept."""
        if dataloader_idx == 0:
            return self._evaluate(batch)
        self.evaluator.shared = self.shared
        prompt = self.evaluator.embed(self._rivals.values(), batch) if self._rivals else None
        left = self._left_of(batch, batch_idx) if self._rivals else []
        for name, rival in self._rivals.items():
            select = as_many(rival, left)
            records, _ = self.evaluator.evaluate(rival, batch, with_kl=False, prompt=prompt, select=select)
            self._baseline_records.setdefault(name, []).extend(records)
        return None

    def _left_of(self, batch: Batch, batch_idx: int) -> list[list[int]]:
        """Of each question of a batch, the tokens that the pruner has left behind each stage in the first pass."""
        if [name for name, _ in self._left[batch_idx]] != [sample.id for sample in batch.samples]:
            raise GlimpseError(
                "Expected the test split to come in the same order twice, once for the pruner and once for the "
                "baselines; leave what shuffles it out, or set `model.baselines: []`."
            )
        return [left for _, left in self._left[batch_idx]]

    def _rival_scorers(self) -> dict[str, Scorer]:
        assert self.model.pruner is not None
        chosen = self.fit_baselines if self.testing_after_fit else self.baselines
        if chosen is not None:
            named: dict[str, Scorer] = {}
            for scorer in chosen:
                name = type(scorer).__name__
                number = sum(type(other) is type(scorer) for other in named.values())
                named[f"{name}{number + 1}" if number else name] = scorer
            return named
        rivals = training_free_scorers(self.model.pruner)
        return {"Random": rivals["Random"]} if self.testing_after_fit else rivals

    @override
    def on_test_epoch_end(self) -> None:
        if self.shared is not None:
            self.shared.skipped = list(self.skipped)
            self.shared.finish()
        self.evaluator.shared = self.shared
        self.remembered.start()
        self._finish_evaluation("test")

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answers of the pruned model, and what it kept."""
        answers, out = self.evaluator.predict(self.model, self.seen(batch))
        counts = [name for name, weight in enumerate(batch.weight.tolist()) if weight]
        return {"answers": answers, "counts": counts, "kept": kept_by_item(out)}

    @override
    def on_predict_epoch_end(self) -> None:
        self._share_skipped()

    def answer(self, samples: list[Sample]) -> list[str]:
        """Answers of the pruned model, outside any trainer."""
        self.configure_model()
        return self.evaluator.predict(self.model, self.seen(self.model.backbone.collate(samples)))[0]

    def seen(self, batch: Batch) -> Batch:
        """What the model under test sees of a batch: smaller images where its resolution is cut."""
        return batch if self.resolution is None else self.resolution.applied(batch, self.model.backbone)


def _pruner_source(
    single: Mapping[str, Any], options: Mapping[str, Any], stages: list[PruneStage] | None, pruner: str | None
) -> Pruner | str | None:
    """What prunes, said in one of three ways: one stage by its parts, several stages, a saved pruner's folder.

    Args:
        single: what one stage needs, by name; ``None`` where it is not given.
        options: what it may have besides.
    """
    given = {name: value for name, value in {**single, **options}.items() if value is not None}
    ways = [", ".join(given)] * bool(given) + ["stages"] * bool(stages) + ["pruner"] * bool(pruner)
    if len(ways) > 1:
        raise GlimpseError(f"Expected one way to say what prunes, but got {' and '.join(ways)}; drop all but one.")
    if stages or pruner:
        return Pruner(stages) if stages else pruner
    if not given:
        return None
    if missing := [name for name, value in single.items() if value is None]:
        raise GlimpseError(
            f"Expected `model.after_layer`, `model.scorer` and `model.policy` together, but {', '.join(missing)} "
            f"is missing (given: {', '.join(given)})."
        )
    return Pruner([PruneStage(**given)])


def _check_recipe(pruner: Pruner, num_layers: int) -> None:
    """Raise where a recipe prunes beyond the model, or may leave a sample without any visual token."""
    for stage in pruner.stages:
        assert isinstance(stage, PruneStage)
        if stage.after_layer >= num_layers:
            raise GlimpseError(
                f"Expected `after_layer` below {num_layers}, the number of the backbone's decoder layers, but got "
                f"{stage.after_layer}; choose an earlier layer, or set `model.allow_empty: true` if you mean it."
            )
        if getattr(stage.policy, "may_keep_nothing", False):
            raise GlimpseError(
                f"{type(stage.policy).__name__} may keep no token at all; set its `min_tokens` to 1 or more, or "
                "`model.allow_empty: true` if you mean it."
            )
