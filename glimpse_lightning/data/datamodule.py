"""One data module for any dataset of visual questions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from glimpse_lightning.data.glyph_vqa.procedural import Procedural
from glimpse_lightning.data.one_question import OneQuestion
from glimpse_lightning.data.order import EvalOrder, TrainOrder
from glimpse_lightning.data.raw_batch import RawBatch
from glimpse_lightning.data.reader import AnsweredBefore, BatchReader
from glimpse_lightning.data.sample import BLANK, Sample
from glimpse_lightning.data.some import Some, unanswered
from glimpse_lightning.data.tables.rows import OnError
from glimpse_lightning.data.workers import end_with_parent, kill_at_exit
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError
from glimpse_lightning.runtime.seeds import global_seed
from glimpse_lightning.runtime.terminal import counted

QUESTION = "{question}"
"""Placeholder of the question in ``VQAData``'s ``prompt``."""


@dataclass
class _Item:
    sample: Sample | None
    weight: float = 1.0
    skipped: list[str] = field(default_factory=list)
    error: str | None = None
    on_error: OnError = "raise"


class _Guarded(Dataset[_Item]):
    """Samples of a dataset, bad ones replaced (``on_error: skip``) or reported instead of raised.

    An exception from a worker arrives as a traceback inside a text, but a message arrives unchanged.

    Args:
        dataset: the samples.
        stand_in_weight: weight of the sample that stands in for a bad one.
        prompt: wording around each question.
    """

    def __init__(self, dataset: Dataset[Sample], stand_in_weight: float, prompt: str) -> None:
        self.dataset = dataset
        self.prompt = prompt
        self.stand_in_weight = stand_in_weight
        self.on_error: OnError = getattr(dataset, "on_error", "raise")
        self.length = len(dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> _Item:
        weight, start = (0.0, 0) if index < 0 else (1.0, index)
        skipped: list[str] = []
        for offset in range(self.length):
            try:
                sample = self.dataset[(start + offset) % self.length]
                sample = replace(sample, question=self.prompt.replace(QUESTION, sample.question))
                weight = self.stand_in_weight * weight if skipped else weight
                return _Item(sample, weight, skipped, on_error=self.on_error)
            except BadSampleError as error:
                if self.on_error != "skip":
                    return _Item(None, error=str(error))
                if weight:
                    skipped.append(str(error))
        if getattr(self.dataset, "rest", False):  # the others are answered
            return _Item(BLANK, 0.0, skipped, on_error=self.on_error)
        return _Item(None, error=f"Expected at least one usable sample, but all {self.length} are bad: {skipped[0]}")


def _together(items: list[_Item]) -> RawBatch:
    return RawBatch(
        samples=[item.sample for item in items if item.sample is not None],
        weight=[item.weight for item in items if item.sample is not None],
        skipped=[message for item in items for message in item.skipped],
        error=next((item.error for item in items if item.error), None),
        on_error=items[0].on_error,
    )


class _Loader(DataLoader[_Item]):
    """A loader whose workers begin with the first batch instead of with the iterator.

    Lightning makes an iterator to count a training's steps, before a resumed run knows how many batches it has had.
    """

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class VQAData(LightningDataModule):
    """Visual questions for training, validation, test and prediction.

    Args:
        train: dataset to train on.
        val: dataset to validate on.
        test: dataset to test on.
        predict: dataset to answer; default: the test dataset.
        batch_size: samples per step and rank in training.
        eval_batch_size: samples per step and rank elsewhere; default: 50 of GlyphVQA's small pages, 4 of other data,
            and 1 of images that `--image FOLDER` names.
        num_workers: processes that render or read images; at most as many as the machine has cores.
        seed: seed of the order of the training samples; ``None``: the seed of ``seed_everything``, so that runs with
            other seeds get other batches.
        group: number of consecutive training samples that shuffling keeps together. For questions about one image, the
            vision tower then runs once per batch. `batch_size` should be a multiple of `group`.
        test_size: number of test samples to use, from the first one on; default: all.
        fit_test_size: number of test samples in the test at the end of `fit`; default: 500; ``None``: all.
        prompt: wording around each question, with `{question}` in its place, such as "{question} Answer with a single
            word."; default: the question alone.

    Examples:
        >>> train, val = gl.GlyphVQA("train", size=32), gl.GlyphVQA("val", size=8)
        >>> data = gl.VQAData(train, val, batch_size=8, num_workers=0)
        >>> len(data.train_dataloader())
        4
    """

    def __init__(
        self,
        train: Dataset | None = None,
        val: Dataset | None = None,
        test: Dataset | None = None,
        predict: Dataset | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 1,
        seed: int | None = None,
        group: int = 1,
        test_size: int | None = None,
        fit_test_size: int | None = 500,
        prompt: str = QUESTION,
    ) -> None:
        super().__init__()
        sizes = {
            "batch_size": batch_size, "eval_batch_size": eval_batch_size, "group": group, "test_size": test_size,
            "fit_test_size": fit_test_size, "num_workers": num_workers,
        }  # fmt: skip
        for name, value in sizes.items():
            least = 0 if name == "num_workers" else 1
            if value is not None and value < least:
                raise GlimpseError(f"Expected `data.{name}` to be at least {least}, but got {value}.")
        if QUESTION not in prompt:
            raise GlimpseError(f"Expected `data.prompt` to contain {QUESTION}, but got {prompt!r}.")
        self.train, self.val, self.test, self.predict = train, val, test, predict
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = global_seed() if seed is None else seed
        self.group = group
        self.test_size = test_size
        self.fit_test_size = fit_test_size
        self.prompt = prompt

    def dataset(self, name: str) -> Dataset[Sample]:
        """The dataset called ``name``.

        Raises:
            GlimpseError: if no dataset of that name was given.
        """
        dataset = getattr(self, name)
        if dataset is None:
            raise GlimpseError(f"Expected `data.{name}` to name a dataset (GlyphVQA, JSONL, ...), but got none.")
        return dataset

    @override
    def setup(self, stage: str) -> None:
        """Read the first sample of each dataset that a run reads: a wrong folder of images is said before the model is
        loaded.

        Raises:
            BadSampleError: if it cannot be read, and the dataset does not skip such samples.
        """
        names = {"fit": ("train", "val"), "predict": ("predict" if self.predict is not None else "test",)}
        for name in names.get(stage, ("val" if stage == "validate" else stage,)):
            if (dataset := getattr(self, name)) is not None and len(dataset):
                item = _Guarded(dataset, 1.0, self.prompt)[0]
                if item.error:
                    raise BadSampleError(item.error)

    def of_a_fit(self) -> str:
        """The datasets that a fit reads, in words: a recipe's own stay where flags name only some of them."""
        named = {"trains on": self.train, "validates on": self.val, "tests on": self.test}
        return "; ".join(f"{what} {_in_words(dataset)}" for what, dataset in named.items())

    def of_fit_test(self) -> VQAData:
        """The data of the test that ends a fit: the first ``fit_test_size`` samples of the test dataset."""
        data = copy(self)
        data.test_size = self.fit_test_size
        return data

    def _reader(self) -> BatchReader:
        """The module that reads the batches; a default one if the trainer's module is no ``BatchReader``."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if isinstance(module, BatchReader) else BatchReader()

    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        return {"num_replicas": trainer.world_size, "rank": trainer.global_rank} if trainer else {}

    def _batches_done(self) -> int:
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total if self.trainer else None
        return progress.processed if progress else 0

    def _loader(self, dataset: Dataset[_Item], **kwargs: Any) -> DataLoader[_Item]:
        kill_at_exit()
        return _Loader(
            dataset,
            num_workers=_on_this_machine(self.num_workers),
            persistent_workers=False,  # else they would live on during validation, next to its own workers
            collate_fn=_together,
            worker_init_fn=end_with_parent,
            **kwargs,
        )

    def train_dataloader(self) -> DataLoader[_Item]:
        dataset = _Guarded(self.dataset("train"), 1.0, self.prompt)
        order = TrainOrder(
            dataset, self.batch_size, self.seed, batches_done=self._batches_done, group=self.group,
            repeats=self._reader().repeats,
            block=self.trainer.accumulate_grad_batches if self.trainer else 1,
            **self._ranks(),
        )  # fmt: skip
        self._say_what_is_left_out(order)
        return self._loader(dataset, sampler=order, batch_size=self.batch_size)

    def _say_what_is_left_out(self, order: TrainOrder) -> None:
        """Warn of rows that are in no batch, and of groups that are split over batches."""
        if self.batch_size % self.group:
            rank_zero_warn(
                f"`data.batch_size: {self.batch_size}` is no multiple of `data.group: {self.group}`: some groups are "
                "divided between two batches, and their images then go through the vision tower twice."
            )
        trainer, width = self.trainer, order.batch_size * order.num_replicas
        if trainer is None or trainer.max_epochs in (None, -1) or trainer.max_steps != -1:
            return  # with a number of steps, the user sets how many rows are used
        unseen = order.length - trainer.max_epochs * (order.length // width) * width
        if order.length >= width and unseen > 0:
            rank_zero_warn(
                f"{unseen} of {order.length} training rows are not seen, as an epoch has whole batches of {width} "
                "only. Train for another epoch, which begins with them, or choose a `data.batch_size` that divides "
                "the number of rows."
            )

    def _eval_loader(self, samples: Dataset[Sample], size: int | None = None) -> DataLoader[_Item]:
        dataset = _Guarded(samples, 0.0, self.prompt)
        order = EvalOrder(dataset, size=size, **self._ranks())
        return self._loader(dataset, sampler=order, batch_size=self._eval_batch(samples))

    def _eval_batch(self, dataset: Dataset[Sample]) -> int:
        """Samples per step and rank outside of training."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        whole = dataset.dataset if isinstance(dataset, Some) else dataset
        return 50 if isinstance(whole, Procedural) else 1 if isinstance(whole, OneQuestion) else 4

    def val_dataloader(self) -> DataLoader[_Item] | list[Any]:
        """The validation data; for a fit without any, no loader, and Lightning validates nothing."""
        if self.val is None and self.trainer is not None and self.trainer.state.fn == "fit":
            return []
        return self._eval_loader(self.dataset("val"))

    def test_dataloader(self) -> list[Any]:
        """One loader for each pass that the module makes over the test split."""
        return list(self._reader().test_loaders(self._eval_loader(self.dataset("test"), self.test_size)))

    def predict_dataloader(self) -> DataLoader[_Item]:
        """A loader of the questions that this run has not answered yet."""
        dataset = self.dataset("predict" if self.predict is not None else "test")
        callbacks: Any = self.trainer.callbacks if self.trainer else ()  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, AnsweredBefore):
                assert self.trainer is not None
                return self._eval_loader(unanswered(self._within_limit(dataset), callback.answered(self.trainer)))
        return self._eval_loader(dataset)

    def _within_limit(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        """The questions within `trainer.limit_predict_batches`, counted over all starts of a run."""
        assert self.trainer is not None
        limit, size = self.trainer.limit_predict_batches, len(dataset)  # type: ignore[arg-type]
        width = self._eval_batch(dataset) * self.trainer.world_size
        batches = int(limit * -(-size // width)) if isinstance(limit, float) else limit
        return dataset if batches * width >= size else Some(dataset, range(batches * width))


def _on_this_machine(workers: int) -> int:
    """At most as many workers as this process has cores: more do not read faster, and torch warns of each loader."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        _say_fewer(workers, cores)
    return min(workers, cores)


@cache
def _say_fewer(workers: int, cores: int) -> None:
    """Print it once, and not for each loader."""
    rank_zero_info(f"`data.num_workers: {workers}` is more than the cores of this machine; {cores} read the data.")


def _in_words(dataset: Any) -> str:
    """A dataset's class, file, split and size, as far as it has them."""
    if dataset is None:
        return "nothing"
    about = [str(value) for name in ("path", "split") if isinstance(value := getattr(dataset, name, None), (str, Path))]
    return " ".join([type(dataset).__name__, *about, f"({counted(len(dataset), 'question')})"])
