"""Several datasets in one run: data module and Lightning module."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.some import Some, unanswered
from glimpse_lightning.data.tables.rows import OnError
from glimpse_lightning.evaluation.answers import answers
from glimpse_lightning.evaluation.chosen_metric import MetricChoice, write_choices
from glimpse_lightning.evaluation.evaluator import kept_and_total
from glimpse_lightning.evaluation.predictions import Prediction, PredictionFiles
from glimpse_lightning.evaluation.suite_report import print_suite, suite_figures, task_figures
from glimpse_lightning.evaluation.tasks import NAMES, Places, Task, check_name, make_task, task_metric
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import write_text

PREDICTIONS, REPORT = "predictions", "suite.json"


class SuiteData(LightningDataModule):
    """The questions of several tasks, without those that this run has already answered.

    Args:
        tasks: names of benchmarks (`docvqa_val`, `gqa`, ...), `visual_cot/<set>`, or `glyph_vqa`.
        own: datasets of your own by name.
        metrics: metrics by the name of a task or of a dataset of your own; default: the task's own metric, and
            ExactMatch for your own.
        places: folders of the data.
        limit: number of questions of each task, from the first one on; default: all.
        max_new_tokens: length of the longest answer; default: the limit of each task (1,024 for Visual-CoT, 64 for your
            own).
        brief: whether Visual-CoT's prompts ask for a single word or phrase.
        ocr: whether TextVQA's questions are followed by the words read in the image.
        streaming: whether to fetch the questions from the Hub without storing the datasets; needs `limit`.
        on_error: treatment of a row that cannot be used: `raise` stops, `skip` leaves the row out and counts it.
        eval_batch_size: questions per step and rank.
        num_workers: processes that read images.

    Examples:
        >>> data = gl.SuiteData(["glyph_vqa"], limit=4)
        >>> data.setup("test")
        >>> [(task.name, len(task.dataset)) for task in data.tasks]
        [('glyph_vqa', 4)]
    """

    def __init__(
        self,
        tasks: list[str],
        own: dict[str, Dataset] | None = None,
        metrics: dict[str, MetricChoice] | None = None,
        places: Places = Places(),
        limit: int | None = None,
        max_new_tokens: int | None = None,
        brief: bool = False,
        ocr: bool = False,
        streaming: bool = False,
        on_error: OnError = "raise",
        eval_batch_size: int = 1,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        for name in tasks:
            check_name(name)
        if twice := {*tasks} & {*(own or {})} | {name for name in tasks if tasks.count(name) > 1}:
            raise GlimpseError(f"Expected every task once, but {sorted(twice)[0]!r} is named twice.")
        if limit is not None and limit < 1:
            raise GlimpseError(f"Expected `data.limit` to be at least 1, but got {limit}.")
        self.names, self.own, self.places = tasks, own or {}, places
        self.metrics = metrics or {}
        for name in self.metrics:
            if name not in (*tasks, *self.own):
                named = ", ".join((*tasks, *self.own)) or "none"
                raise GlimpseError(f"Expected `data.metrics` of tasks out of {named}, but got {name!r}.")
        self._chosen = {name: choice.build() for name, choice in self.metrics.items()}
        self.max_new_tokens = max_new_tokens
        self.limit, self.brief, self.ocr, self.streaming, self.on_error = limit, brief, ocr, streaming, on_error
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.tasks: list[Task] = []

    @property
    def skipped(self) -> list[str]:
        """Messages about lines of your own files that were left out."""
        return [message for dataset in self.own.values() for message in getattr(dataset, "skipped", [])]

    @override
    def setup(self, stage: str) -> None:
        """Open the data of all tasks."""
        if self.tasks:
            return
        self.tasks = [
            make_task(name, self.places, self.limit, self.brief, self.streaming, self.on_error, self.ocr)
            for name in self.names
        ]
        self.tasks += [Task(name, self._limited(dataset), 64, task_metric(name)) for name, dataset in self.own.items()]
        self.tasks = [replace(task, metric=self._chosen.get(task.name, task.metric)) for task in self.tasks]
        if not self.tasks:
            raise GlimpseError(f"Expected `data.tasks` to name at least one task, out of {', '.join(NAMES)}.")

    def _limited(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        size = len(dataset)  # type: ignore[arg-type]
        return dataset if self.limit is None or self.limit >= size else Some(dataset, range(self.limit))

    @override
    def test_dataloader(self) -> list[Any]:
        """One loader for each task, over the questions that are not answered yet."""
        assert self.trainer is not None
        files = PredictionFiles(Path(self.trainer.default_root_dir) / PREDICTIONS)
        answered = [files.read(task.name) for task in self.tasks]
        self.trainer.strategy.barrier("predictions are read")  # before a rank goes on and writes to them
        return [loader for task, done in zip(self.tasks, answered, strict=True) for loader in self._loader(task, done)]

    def _loader(self, task: Task, answered: Mapping[str, Prediction]) -> list[DataLoader[Any]]:
        if answered:
            size = len(task.dataset)  # type: ignore[arg-type]
            rank_zero_info(f"{task.name}: {len(answered)} of {size} questions are answered already.")
        rest = unanswered(task.dataset, answered)
        data = VQAData(test=rest, eval_batch_size=self.eval_batch_size, num_workers=self.num_workers)
        data.trainer = self.trainer
        return data.test_dataloader()


class SuiteModule(VLMModule):
    """Runs a suite: the pruned model and the full one answer the questions of all tasks.

    Every batch's answers are written before the next one starts, to `predictions/` in the run's folder; the same
    command resumes a killed run. At the end `suite.json` gets the figures of every task.

    Args:
        full: whether the full model answers, too.
        args, kwargs: arguments of :class:`VLMModule`; the length of answers is set by the tasks or by
            :class:`SuiteData`.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> module = gl.SuiteModule(
        ...     "glimpse-tiny", after_layer=3, scorer=gl.scorers.AttentionRank(), policy=gl.policies.TopK(32)
        ... )
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> data = gl.SuiteData(["glyph_vqa"], limit=1, num_workers=0)
        >>> figures = trainer.test(module, data, verbose=False)[0]
        suite
        ...
        >>> figures["test/glyph_vqa/retention"]
        0.125
    """

    resumable = True

    def __init__(self, *args: Any, full: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.full = full
        self._files: PredictionFiles | None = None
        self._plain: tuple[PrunedVLM, ...] = ()  # in a tuple, or it would be registered as a second model
        self._done: dict[str, set[str]] = {}

    @property
    def _data(self) -> SuiteData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SuiteData):
            raise GlimpseError("Expected `data` to be a SuiteData where `model` is a SuiteModule.")
        return data

    @override
    def on_test_epoch_start(self) -> None:
        folder = Path(self.trainer.default_root_dir) / PREDICTIONS
        self._plain = (PrunedVLM(self.model.backbone),)
        if self.trainer.is_global_zero:
            write_choices(folder, self._data.metrics)
        self._files = PredictionFiles(folder, self.global_rank)
        self._done = {task.name: set(self._files.read(task.name)) for task in self._data.tasks}

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch and write the answers to the run's files."""
        assert self._files is not None
        task = self._data.tasks[dataloader_idx]
        longest = self._data.max_new_tokens or task.max_new_tokens
        layers = tuple(dict.fromkeys(self.model.vision_layers))
        prompt = self.model.backbone.embed(batch.inputs, layers)  # once for both models
        cut = self.cut(batch)
        texts, out = answers(self.model, cut, longest, prompt if cut is batch else None)
        full: Sequence[str | None] = [None] * len(texts)
        if self.full:
            plain = self.model.pruner is None and cut is batch
            full = texts if plain else answers(self._plain[0], batch, longest, prompt)[0]
        done = self._done[task.name]
        lines = []
        whole = prompt.visual.sum(1).tolist()  # for images before the resolution cut
        for row, ((kept, _), total) in enumerate(zip(kept_and_total(out, len(whole)), whole, strict=True)):
            sample = batch.samples[row]
            if batch.weight[row] == 0 or sample.id in done:
                continue
            done.add(sample.id)
            score, full_score = (
                task.metric.score(text, sample.answers) if sample.answers and text is not None else None
                for text in (texts[row], full[row])
            )
            lines.append(
                Prediction(
                    task=task.name,
                    id=sample.id,
                    question=sample.question,
                    references=sample.answers,
                    prediction=texts[row],
                    family=sample.family,
                    full_prediction=full[row],
                    score=score,
                    full_score=full_score,
                    kept=kept,
                    total=total,
                    image=sample.image_name,
                )
            )
        self._files.add(lines)

    @override
    def on_test_epoch_end(self) -> None:
        """Compute the figures of all tasks from the predictions of all ranks."""
        assert self._files is not None
        self.trainer.strategy.barrier("predictions are written")
        tasks = {
            task.name: task_figures(list(self._files.read(task.name).values()), task.metric)
            for task in self._data.tasks
        }
        backbone = self.model.backbone
        report = {"tasks": tasks, "mean": suite_figures(tasks), "backbone": {"name": backbone.name}}
        report["backbone"] |= backbone.described()
        for name, figures in {**tasks, "mean": report["mean"]}.items():
            scalars = {f"test/{name}/{key}": value for key, value in figures.items() if isinstance(value, float)}
            self.log_dict(scalars, rank_zero_only=False, sync_dist=False)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            print_suite(tasks, remark=backbone.asked())
