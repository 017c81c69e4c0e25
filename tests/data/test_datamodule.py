from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from glimpse_lightning.data import datamodule
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.one_question import OneQuestion
from glimpse_lightning.data.order import EvalOrder, TrainOrder
from glimpse_lightning.data.raw_batch import RawBatch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError


class Numbers(Dataset):
    """Samples 0 to size - 1; those in ``bad`` cannot be read."""

    def __init__(self, size: int, bad: tuple[int, ...] = (), on_error: str = "raise") -> None:
        self.size, self.bad, self.on_error = size, bad, on_error

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise BadSampleError(f"sample {index} is bad")
        return Sample(str(index), index, "q", ["a"], [Image.new("RGB", (2, 2))])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 30))
def test_training_order_resumes_where_it_stopped(size: int, batch: int, ranks: int, done: int) -> None:
    def walk(start: int, batches: int) -> list[list[int]]:
        """What each rank sees in so many batches from ``start`` on."""
        seen = []
        for rank in range(ranks):
            order: list[int] = []
            while len(order) < batches * batch:
                at = start + len(order) // batch
                order += TrainOrder(Numbers(size), batch, 0, ranks, rank, lambda at=at: at)
            seen.append(order[: batches * batch])
        return seen

    whole, rest = walk(0, done + 10), walk(done, 10)
    assert [order[done * batch :] for order in whole] == rest


def test_batches_repeat_in_blocks_and_resume_within_them() -> None:
    def batches(**kwargs: Any) -> list[tuple[int, ...]]:
        order = list(TrainOrder(Numbers(12), 2, 7, **kwargs))
        return list(zip(order[::2], order[1::2], strict=True))

    once = batches()
    assert batches(repeats=2) == [batch for batch in once for _ in range(2)]
    thrice = batches(repeats=3, block=2)
    assert thrice == once[0:2] * 3 + once[2:4] * 3 + once[4:6] * 3
    assert batches(repeats=3, block=2, batches_done=lambda: 4)[:8] == thrice[4:12]


def test_training_visits_every_sample_equally_often() -> None:
    ranks = [list(TrainOrder(Numbers(12), 3, 7, 2, rank)) for rank in range(2)]
    assert Counter(ranks[0] + ranks[1]) == Counter(range(12))
    assert ranks[0] != sorted(ranks[0])
    other = list(TrainOrder(Numbers(12), 3, 8, 2, 0))
    assert other != ranks[0]


@given(st.integers(1, 30), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 40)))
def test_evaluation_sees_every_sample_once_in_equal_steps(size: int, ranks: int, limit: int | None) -> None:
    orders = [list(EvalOrder(Numbers(size), ranks, rank, limit)) for rank in range(ranks)]
    assert len({len(order) for order in orders}) == 1
    assert sorted(i for order in orders for i in order if i >= 0) == list(range(min(size, limit or size)))


def _batches(data: VQAData) -> list[RawBatch]:
    return list(data.val_dataloader())


def test_runs_with_other_seeds_see_other_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed_everything` reaches the order, unless the data have a seed of their own."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert (VQAData(train=Numbers(4)).seed, VQAData(train=Numbers(4), seed=2).seed) == (5, 2)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert VQAData(train=Numbers(4)).seed == 0


def test_training_keeps_groups_together_and_shuffles_them() -> None:
    order = list(TrainOrder(Numbers(10), 2, 7, group=4))
    assert sorted(order) == list(range(10))
    for first, size in ((0, 4), (4, 4), (8, 2)):
        at = order.index(first)
        assert order[at : at + size] == list(range(first, first + size))
    assert order != list(range(10))


def loaded(epochs: int | None, steps: int = -1, ranks: int = 1, **options: Any) -> None:
    """Make the loader of a training on ten samples."""
    data = VQAData(train=Numbers(10), num_workers=0, **options)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_epochs=epochs,
        max_steps=steps,
        world_size=ranks,
        global_rank=0,
        accumulate_grad_batches=1,
        lightning_module=None,
    )
    data.train_dataloader()


@pytest.mark.parametrize(
    ("epochs", "options", "unseen"),
    [(1, {"batch_size": 4, "group": 4}, 2), (1, {"batch_size": 3}, 1), (1, {"batch_size": 2, "ranks": 3}, 4)],
)
def test_rows_that_no_batch_shows_are_counted(epochs: int, options: dict[str, Any], unseen: int) -> None:
    with pytest.warns(UserWarning, match=f"^{unseen} of 10 training rows are not seen.*another epoch"):
        loaded(epochs, **options)


@pytest.mark.parametrize(
    ("epochs", "options"),
    [(1, {"batch_size": 5}), (2, {"batch_size": 4, "group": 4}), (1, {"batch_size": 16}), (-1, {"batch_size": 4}),
     (1, {"batch_size": 4, "steps": 2})],
)  # fmt: skip
def test_nothing_is_said_where_all_rows_or_so_many_steps_are_seen(epochs: int, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(epochs, **options)


@pytest.mark.parametrize("batch_size", [2, 6])
def test_batches_that_divide_groups_are_spoken_of(batch_size: int) -> None:
    with pytest.warns(UserWarning, match=f"batch_size: {batch_size}` is no multiple of `data.group: 4`"):
        loaded(-1, batch_size=batch_size, group=4)


def test_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    said: list[str] = []
    monkeypatch.setattr(datamodule, "rank_zero_info", said.append)
    datamodule._say_fewer.cache_clear()
    data = VQAData(train=Numbers(8), val=Numbers(4), batch_size=2, num_workers=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own, of each loader
        loaders = [data.train_dataloader(), data.val_dataloader(), data.val_dataloader()]
    assert [loader.num_workers for loader in loaders] == [2, 2, 2]
    assert said == ["`data.num_workers: 8` is more than the cores of this machine; 2 read the data."]
    assert VQAData(val=Numbers(4), num_workers=1).val_dataloader().num_workers == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_reported_with_its_own_words(workers: int) -> None:
    batches = _batches(VQAData(val=Numbers(4, bad=(2,)), eval_batch_size=2, num_workers=workers))
    assert [batch.error for batch in batches] == [None, "sample 2 is bad"]


@pytest.mark.parametrize(
    ("stage", "data"),
    [("fit", {"train": Numbers(4, bad=(0,))}), ("fit", {"train": Numbers(4), "val": Numbers(4, bad=(0,))}),
     ("validate", {"val": Numbers(4, bad=(0,))}), ("test", {"test": Numbers(4, bad=(0,))}),
     ("predict", {"test": Numbers(4, bad=(0,))}), ("predict", {"test": Numbers(4), "predict": Numbers(4, bad=(0,))})],
)  # fmt: skip
def test_a_bad_first_sample_is_reported_before_the_model_is_loaded(stage: str, data: dict[str, Any]) -> None:
    with pytest.raises(BadSampleError, match="sample 0 is bad"):
        VQAData(**data, num_workers=0).setup(stage)


def test_setting_up_reads_nothing_that_is_skipped_or_asked_for_by_no_one() -> None:
    VQAData(test=Numbers(4, bad=(0,), on_error="skip")).setup("test")
    VQAData(train=Numbers(4, bad=(0,)), test=Numbers(4), predict=Numbers(4)).setup("test")


def test_skipping_in_evaluation_gives_the_stand_in_no_weight() -> None:
    (batch,) = _batches(VQAData(val=Numbers(4, bad=(1, 2), on_error="skip"), num_workers=0))
    assert [sample.id for sample in batch.samples] == ["0", "3", "3", "3"]
    assert batch.weight == [1.0, 0.0, 0.0, 1.0]
    assert set(batch.skipped) == {"sample 1 is bad", "sample 2 is bad"}


def test_skipping_in_training_lets_the_stand_in_count() -> None:
    data = VQAData(train=Numbers(4, bad=(1,), on_error="skip"), batch_size=4, num_workers=0)
    (batch,) = data.train_dataloader()
    assert sorted(sample.id for sample in batch.samples) == ["0", "2", "2", "3"]
    assert batch.weight == [1.0] * 4


def test_nothing_but_bad_samples_is_an_error() -> None:
    (batch,) = _batches(VQAData(val=Numbers(2, bad=(0, 1), on_error="skip"), num_workers=0))
    assert batch.error is not None
    assert "all 2 are bad" in batch.error


def test_missing_dataset_is_named() -> None:
    with pytest.raises(GlimpseError, match=r"`data\.train`"):
        VQAData().train_dataloader()


def test_the_wording_around_a_question() -> None:
    data = VQAData(test=GlyphVQA("test", 2, image_size=224), num_workers=0, prompt="{question} In one word.")
    (loader,) = data.test_dataloader()
    (batch,) = loader
    plain = GlyphVQA("test", 2, image_size=224)
    assert [sample.question for sample in batch.samples] == [f"{plain[i].question} In one word." for i in range(2)]
    assert [sample.id for sample in batch.samples] == [plain[i].id for i in range(2)]
    with pytest.raises(GlimpseError, match=r"contain .question."):
        VQAData(prompt="In one word.")


def test_a_picture_is_the_same_sample_whatever_else_is_in_its_folder(tmp_path: Path) -> None:
    """Its key seeds random choices, which would otherwise change with the number of neighbours."""
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    alone = OneQuestion.about_each(tmp_path, "what")[0]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    among = OneQuestion.about_each(tmp_path, "what")[1]
    assert (alone.id, alone.key) == (among.id, among.key) and alone.key != 0


def test_batches_of_questions_fit_their_images() -> None:
    """GlyphVQA's small pages, other data, photographs of a folder; what is asked for counts."""
    asked = [OneQuestion([["a.png"]] * 9, "what"), GlyphVQA("test", 60, 224), [GlyphVQA("test", 1)[0]] * 9]
    sizes = [VQAData(test=data, num_workers=0)._eval_loader(data).batch_size for data in asked]
    assert sizes == [1, 50, 4]
    assert VQAData(test=asked[1], eval_batch_size=7)._eval_loader(asked[1]).batch_size == 7
