"""A baseline has of every question as many tokens as the method it is compared with, behind every stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random as Dice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from PIL import Image
from ranks import on_two_ranks
from torch.utils.data import Dataset

import glimpse_lightning as gl
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.baselines import baseline_models
from glimpse_lightning.evaluation.records import Record
from glimpse_lightning.policies import KeepRatio, Threshold, TopK
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.reducers import MergeNearest
from glimpse_lightning.scorers import AttentionRank, FixedRatio, Random, Scorer
from glimpse_lightning.training.module import PruningModule

COUNTS = ("kept", "total", "entering", "layer_mean", "kv", "flops")


class Pages(Dataset[Sample]):
    """Questions about pages of many sizes: most about one, some about two or none."""

    def __init__(self, size: int, seed: int = 0) -> None:
        dice = Dice(seed)
        self.shapes = [
            [(28 * dice.randint(2, 9), 28 * dice.randint(2, 9)) for _ in range((1, 1, 2, 0)[number % 4])]
            for number in range(size)
        ]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Sample:
        images = [Image.new("RGB", shape, (25 * index, 128, 0)) for shape in self.shapes[index]]
        return Sample(id=f"page {index}", key=index, question=f"What is {index}?", answers=["it"], images=images)


def adaptive(threshold: float, **options: Any) -> dict[str, Any]:
    return {"scorer": Random(), "policy": Threshold(threshold, scale="raw"), **options}


METHODS: dict[str, dict[str, Any]] = {
    "its own number for each question": adaptive(0.8, after_layer=1),
    "early keys and values kept": adaptive(0.6, after_layer=2, early_kv="keep"),
    "closed gaps": adaptive(0.9, after_layer=0, positions="renumber"),
    "one number for all": {"after_layer": -1, "scorer": FixedRatio(), "policy": TopK(5)},
    "dropped tokens merged": adaptive(0.7, after_layer=1, reducer=MergeNearest()),
    "nothing left": {"after_layer": 1, "scorer": Random(), "policy": KeepRatio(0.0, min_tokens=0), "allow_empty": True},
    "three stages": {
        "stages": [
            PruneStage(0, AttentionRank(), KeepRatio(0.7), early_kv="keep"),
            PruneStage(1, Random(), Threshold(0.5, scale="raw")),
            PruneStage(3, Random(), TopK(4), early_kv="keep", positions="renumber"),
        ]
    },
}


def compared(
    root: Path, options: dict[str, Any], rivals: Sequence[Scorer] | None = (Random(), FixedRatio()), **trainer: Any
) -> tuple[list[Record], dict[str, list[Record]]]:
    module = PruningModule(max_new_tokens=1, baselines=rivals and list(rivals), **options)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    runner = Trainer(accelerator="cpu", logger=False, default_root_dir=root, **quiet, **({"devices": 1} | trainer))
    runner.test(module, datamodule=VQAData(test=Pages(9), eval_batch_size=3, num_workers=0), verbose=False)
    assert module.summary is not None
    return module.summary.records, module.summary.baselines


def tokens(records: Sequence[Record]) -> dict[str, list[Any]]:
    return {record.id: [getattr(record, name) for name in COUNTS] for record in records}


@pytest.mark.parametrize("name", METHODS)
def test_a_baseline_has_as_many_tokens_of_every_question(name: str, tmp_path: Path) -> None:
    """In the language model, on the average layer, in the cache and in FLOPs; so it prunes where the method does."""
    records, baselines = compared(tmp_path, METHODS[name])
    assert len(records) == 9
    assert len({record.kept / record.total for record in records if record.total}) > 1 or name == "nothing left"
    assert list(baselines) == ["Random", "FixedRatio"]
    for found in baselines.values():
        assert tokens(found) == tokens(records)


def test_questions_of_one_id_keep_their_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of one's own may name questions alike."""
    whole = Pages.__getitem__
    monkeypatch.setattr(Pages, "__getitem__", lambda self, index: replace(whole(self, index), id=f"page {index % 2}"))
    records, baselines = compared(tmp_path, METHODS["its own number for each question"])
    for found in baselines.values():
        assert [record.kept for record in found] == [record.kept for record in records]


def test_baselines_that_nobody_asked_for_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        compared(tmp_path, METHODS["one number for all"], rivals=None)
    assert "baselines (FixedRatio, " in caplog.text and "`--model.baselines []` leaves them out" in caplog.text


def test_two_baselines_of_one_kind(tmp_path: Path) -> None:
    _, baselines = compared(tmp_path, METHODS["one number for all"], rivals=[Random(), FixedRatio(), Random()])
    assert list(baselines) == ["Random", "FixedRatio", "Random2"]


def _on_a_rank(root: Path) -> list[Any]:
    records, baselines = compared(root, METHODS["its own number for each question"], devices=2, strategy="ddp")
    return [tokens(records), *(tokens(found) for found in baselines.values())]


@pytest.mark.timeout(180)
def test_two_ranks_give_baselines_the_same_tokens(tmp_path: Path) -> None:
    """Nine questions on two ranks: one of them pads."""
    alone = tokens(compared(tmp_path, METHODS["its own number for each question"])[0])
    for rank in on_two_ranks(_on_a_rank, tmp_path, tmp_path):
        assert rank == [alone, alone, alone]


def test_a_baseline_prunes_as_the_method_does() -> None:
    stages = [PruneStage(0, AttentionRank(), TopK(9), early_kv="keep"),
              PruneStage(2, AttentionRank(), TopK(3), MergeNearest(), positions="renumber")]  # fmt: skip
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), Pruner(stages))
    pruner = baseline_models(model, {"chance": Random()})["chance"].pruner
    assert pruner is not None
    found = [(stage.after_layer, stage.early_kv, stage.positions) for stage in pruner.stages]
    assert found == [(0, "keep", "keep"), (2, "prune", "renumber")]
    assert all(type(stage.reducer).__name__ == "Drop" for stage in pruner.stages)


@pytest.fixture(scope="module")
def model() -> gl.PrunedVLM:
    return gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), Pruner([PruneStage(1, Random(), TopK(1))]))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.floats(0, 1))
def test_a_share_alone_gives_baselines_no_fewer_tokens(model: gl.PrunedVLM, sizes: list[int], share: float) -> None:
    """Whatever the sizes are: all questions together keep the share of all tokens, and at most one more each."""
    pruner = baseline_models(model, {"chance": Random()}, share, sum(sizes) / len(sizes))["chance"].pruner
    assert pruner is not None
    rule = pruner.stages[0].policy
    assert isinstance(rule, KeepRatio)
    kept = sum(math.floor(rule.ratio * size + 1e-9) for size in sizes)
    assert share * sum(sizes) - 1e-5 * len(sizes) <= kept <= share * sum(sizes) + len(sizes)
    if len(set(sizes)) == 1:
        assert kept == len(sizes) * min(sizes[0], math.ceil(share * sizes[0] - 1e-6))
