"""EvaluationModule: the pruned model next to the full one and to baselines, under Lightning's validate and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from typing_extensions import override

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.baselines import as_many, baseline_models, training_free_scorers
from glimpse_lightning.evaluation.evaluator import Evaluator, left_by_stage
from glimpse_lightning.evaluation.records import Record, Summary
from glimpse_lightning.evaluation.remarks import least_seen
from glimpse_lightning.evaluation.shared_questions import SharedQuestions
from glimpse_lightning.evaluation.timing import costs
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.metrics import AnswerMetric, ExactMatch
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import release
from glimpse_lightning.runtime.ranks import gathered
from glimpse_lightning.scorers.base import Scorer

REMEMBERED = 1e9
"""Bytes of main memory for a test's questions, from the pruner's pass to the baselines'."""


class EvaluationModule(VLMModule):
    """Evaluates a pruner against the full model and against baselines.

    Args:
        metric: score of an answer; default: ExactMatch.
        baselines: scorers that `test` compares with, after the same layers and with as many tokens of each question as
            the pruner keeps; default: all scorers that need no training.
        latency: number of questions whose cost is measured after a test, one at a time, next to Hugging Face's own
            model (:func:`~glimpse_lightning.evaluation.timing.costs`). 0: none.
        args, kwargs: arguments of :class:`VLMModule`.

    Attributes:
        summary: figures of the last evaluation.
        costs: time and memory of a question, where they were measured.
        seen: share of its images that the model saw, by question of the last evaluation.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> module = gl.EvaluationModule(
        ...     "glimpse-tiny", after_layer=3, scorer=gl.scorers.AttentionRank(), policy=gl.policies.TopK(32),
        ...     baselines=[],
        ... )
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> data = gl.VQAData(test=gl.GlyphVQA("test", size=1), num_workers=0)
        >>> trainer.test(module, data, verbose=False)[0]["test/retention"]
        0.125
    """

    def __init__(
        self,
        *args: Any,
        metric: AnswerMetric | None = None,
        baselines: list[Scorer] | None = None,
        latency: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if latency < 0:
            raise GlimpseError(f"Expected `model.latency` to be a number of questions, 0 or more, but got {latency}.")
        self.latency = latency
        self.costs: dict[str, Any] | None = None
        self._timed: list[Sample] = []
        self._seen: list[float] = []
        self.seen: list[float] = []
        self.metric = metric
        self.baselines = baselines
        self.summary: Summary | None = None
        self._common: SharedQuestions | None = None
        self.remembered = SharedQuestions(limit=REMEMBERED)
        self._records: list[Record] = []
        self._baseline_records: dict[str, list[Record]] = {}
        self._rivals: dict[str, PrunedVLM] = {}
        self._left: list[list[tuple[str, list[int]]]] = []  # by batch: questions, and tokens left after each stage

    def share(self, backbone: Backbone, questions: SharedQuestions) -> None:
        """Use a loaded backbone, and share the work on each question with other modules that use it.

        Args:
            backbone: backbone of all these modules.
            questions: results of the first module that the others reuse.
        """
        self.over(backbone)
        self._common, self.skipped = questions, list(questions.skipped)

    @override
    def configure_model(self) -> None:
        if self.vlm is None:
            super().configure_model()
            full = PrunedVLM(self.model.backbone)
            self.evaluator = Evaluator(full, self.metric or ExactMatch(), self.max_new_tokens, self._common)

    # -- the passes of a test -----------------------------------------------------------------------------------

    @property
    def compared(self) -> list[Scorer] | None:
        """Scorers that a test compares with; ``None``: all scorers that need no training."""
        return self.baselines

    @property
    def test_passes(self) -> int:
        """Number of passes over the test split. Baselines need a second pass, because they keep as many tokens as the
        pruned model kept in the first one.
        """
        return 1 if self.compared == [] or (self.vlm is not None and self.vlm.pruner is None) else 2

    @override
    def test_loaders(self, loader: Any) -> Sequence[Any]:
        """One loader for the pruner, and one for the baselines, which run after all questions of the pruner."""
        if self._common is not None and self._common.complete:
            ready: Any = self._common.batches
            return [DataLoader(ready, batch_size=None, collate_fn=_unchanged)]
        return [loader, _Again(loader, self.remembered)] if self.test_passes > 1 else [loader]

    # -- steps --------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        records, out = self.evaluator.evaluate(self.model, batch, resolution=self.resolution)
        self._records += records
        kept = out.items()
        weights = batch.weight.tolist()
        self._seen += [
            least_seen([item for item in kept if item["sample"] == place])
            for place, weight in enumerate(weights)
            if weight and self.resolution is None
        ]
        if self.trainer.testing and len(self._timed) < self.latency:
            asked = [sample for sample, weight in zip(batch.samples, weights, strict=True) if weight]
            self._timed += asked[: self.latency - len(self._timed)]
        if self._rivals:
            counts = left_by_stage(out, len(batch.samples))
            self._left.append([(sample.id, left) for sample, left in zip(batch.samples, counts, strict=True)])
        return {"records": records, "kept": kept}

    def _start_evaluation(self) -> None:
        self._records, self._baseline_records, self._rivals, self._left = [], {}, {}, []
        self._timed, self.costs, self._seen = [], None, []
        release(self)
        if any(p.requires_grad for name, p in self.model.named_parameters() if name.startswith("model.")):
            self.evaluator.cache.clear()  # the full model itself is being trained

    def _finish_evaluation(self, stage: str) -> None:
        release(self)  # optimizers and checkpoints use the shards only
        records = gathered(self._records)
        self.seen = gathered(self._seen)
        self.share_skipped()
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
        if self.latency and self.model.sharded:
            raise GlimpseError(
                "`model.latency` measures a model of one process, but this one is sharded. Leave it out, or use a "
                "strategy that keeps the model whole."
            )
        self._start_evaluation()
        if self.test_passes > 1:
            self._rivals = baseline_models(self.model, self._rival_scorers())
            if self.compared is None:
                rank_zero_info(
                    f"Every question is also answered with {len(self._rivals)} baselines ({', '.join(self._rivals)}): "
                    "`--model.baselines []` leaves them out."
                )
        if self._common is not None:
            self._common.start()
        elif self._rivals and not self.model.sharded:  # sharded ranks must embed as often as each other
            taps = (tap for rival in self._rivals.values() for tap in rival.vision_layers)
            self.remembered.taps = tuple(dict.fromkeys(taps))
            self.remembered.start()
            self.evaluator.shared = self.remembered

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any] | None:
        """First pass: full and pruned model; second pass: the baselines, with the numbers of tokens kept in the first
        one.
        """
        if dataloader_idx == 0:
            return self._evaluate(batch)
        self.evaluator.shared = self._common
        prompt = self.evaluator.embed(self._rivals.values(), batch) if self._rivals else None
        left = self._left_of(batch, batch_idx) if self._rivals else []
        for name, rival in self._rivals.items():
            select = as_many(rival, left)
            records, _ = self.evaluator.evaluate(rival, batch, with_kl=False, prompt=prompt, select=select)
            self._baseline_records.setdefault(name, []).extend(records)
        return None

    def _left_of(self, batch: Batch, batch_idx: int) -> list[list[int]]:
        """Number of tokens after each stage of the pruner in the first pass, for each question of a batch."""
        if [name for name, _ in self._left[batch_idx]] != [sample.id for sample in batch.samples]:
            raise GlimpseError(
                "Expected the test split to come in the same order twice, once for the pruner and once for the "
                "baselines; leave what shuffles it out, or set `model.baselines: []`."
            )
        return [left for _, left in self._left[batch_idx]]

    def _has_boxes(self) -> bool:
        """Whether the test data have evidence boxes, as far as their class can tell."""
        data: Any = getattr(self.trainer.datamodule, "test", None)  # type: ignore[attr-defined]
        return not hasattr(data, "annotated") or data.annotated("boxes") > 0

    def _rival_scorers(self) -> dict[str, Scorer]:
        assert self.model.pruner is not None
        if self.compared is None:
            rivals = training_free_scorers(self.model.pruner)
            return rivals if self._has_boxes() else {name: each for name, each in rivals.items() if name != "Oracle"}
        named: dict[str, Scorer] = {}
        for scorer in self.compared:
            name = type(scorer).__name__
            number = sum(type(other) is type(scorer) for other in named.values())
            named[f"{name}{number + 1}" if number else name] = scorer
        return named

    @override
    def on_test_epoch_end(self) -> None:
        if self._common is not None:
            self._common.skipped = list(self.skipped)
            self._common.finish()
        self.evaluator.shared = self._common
        self.remembered.start()
        self._finish_evaluation("test")
        self._measure_costs()

    def _measure_costs(self) -> None:
        """Time and memory of the first questions, on the first rank alone."""
        changes = self.model.pruner is not None or self.resolution is not None
        if self._timed and changes and self.trainer.is_global_zero:
            with self.trainer.precision_plugin.forward_context():
                self.costs = costs(self.model, self._timed, self.resolution)
        self._timed = []


class _Again:
    """A second pass over a loader. It reuses the batches of the first pass if all of them are in memory.

    Args:
        loader: loader that is read again otherwise.
        remembered: store of the first pass's batches, still empty here.
    """

    def __init__(self, loader: DataLoader[Any], remembered: SharedQuestions) -> None:
        self.loader = loader
        self.remembered = remembered

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = self.remembered.batches
        yield from batches if len(batches) == len(self.loader) else self.loader


def _unchanged(batch: Any) -> Any:
    return batch
