"""Remarks about figures that are easily misread, each where it holds and nowhere else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import glimpse_lightning as gl
from glimpse_lightning.evaluation.records import Record, Summary
from glimpse_lightning.evaluation.remarks import (
    foreign,
    kept_in_padding,
    no_better_than_random,
    off_budget,
    partly_seen,
    uneven,
    why_nothing_is_right,
)


def records(*scores: float | None, said: str = "a", kept: int = 1) -> list[Record]:
    return [Record(str(i), "", "q", [], said, "a", score, score, kept, 10) for i, score in enumerate(scores)]


def test_a_full_model_that_is_never_right_has_reasons() -> None:
    said = why_nothing_is_right(Summary(records(0.0, None), {}), "ANLS")
    assert "ANLS may ask for more" in said and "--data.prompt" in said


@pytest.mark.parametrize("scores", [(0.0, 1.0), (0.1,), (None, None), ()])
def test_there_are_none_where_something_is_right_or_nothing_is_known(scores: tuple[float | None, ...]) -> None:
    assert why_nothing_is_right(Summary(records(*scores), {}), "ANLS") == ""


@pytest.mark.parametrize(
    ("own", "random", "said"),
    [
        (records(*[0.0, 1.0] * 8), records(*[1.0] * 16), "(accuracy 100.0% against 50.0%)"),
        (records(0.0, 1.0, 1.0, 1.0), records(*[1.0] * 4), ""),  # one question is chance
        (records(1.0, 0.0), records(0.0, 1.0), ""),
        (records(None, None, said="b"), records(None, None), "(agreement 100.0% against 0.0%)"),
        (records(None, None), records(None, None, said="b"), ""),
        (records(1.0), [], ""),
        ([], [], ""),
    ],
)
def test_random_tokens_are_named_where_they_do_better(own: list[Record], random: list[Record], said: str) -> None:
    found = no_better_than_random(Summary(own, {"AttentionRank": records(1.0), "Random": random}))
    assert (said in found) if said else found == ""


@pytest.mark.parametrize(
    ("objective", "kept", "said"),
    [
        (gl.objectives.KL(retention=0.3), 1, "asked for 30.0% of the tokens, and this evaluation kept 10.0%"),
        (gl.objectives.KL(retention=0.2), 5, "asked for 20.0% of the tokens, and this evaluation kept 50.0%"),
        (gl.objectives.KL(retention=0.2), 3, ""),
        (gl.objectives.KL(retention=0.1, flops=0.5), 5, ""),  # a budget of compute
        (gl.objectives.Mask(), 5, ""),
        (None, 5, ""),
    ],
)
def test_a_test_that_keeps_another_share_than_was_trained_says_so(objective: Any, kept: int, said: str) -> None:
    found = off_budget(Summary(records(1.0, kept=kept), {}), objective)
    assert (said in found) if said else found == ""


@pytest.mark.parametrize(
    ("kept", "said"),
    [([1] * 9 + [100], "at most 1.0% of their tokens, and one keeps 100.0%: the mean, 10.9%"), ([1] * 5 + [9] * 5, ""),
     ([10] * 10, ""), ([100], ""), ([], "")],
)  # fmt: skip
def test_a_mean_over_few_large_shares_is_explained(kept: list[int], said: str) -> None:
    found = uneven(Summary([Record(str(i), "", "q", [], "a", "a", 1.0, 1.0, n, 100) for i, n in enumerate(kept)], {}))
    assert (said in found) if said else found == ""


def test_embedded_backbones_know_their_own_pages_only() -> None:
    pages, dense, photographs = gl.GlyphVQA("test", size=1), gl.DenseGlyphVQA("test", size=1), SimpleNamespace()
    assert "glimpse-tiny knows GlyphVQA's pages" in foreign("glimpse-tiny", photographs)
    assert "glimpse-dense knows DenseGlyphVQA's pages" in foreign("glimpse-dense", pages)
    assert foreign("glimpse-dense", dense) == foreign("glimpse-llava", dense) == "" != foreign("glimpse-tiny", dense)
    assert foreign("glimpse-tiny", pages) == foreign("some/model", photographs) == ""
    assert foreign("glimpse-tiny", None) == foreign(None, photographs) == ""


def test_a_test_says_of_how_many_images_the_model_saw_a_part() -> None:
    assert partly_seen([1.0, 0.995]) == partly_seen([]) == ""
    said = partly_seen([1.0, 0.75, 0.5625])
    assert said.startswith("2 of the answers are about images of which the model saw a part only (56% to 75%)")
    module = gl.EvaluationModule("glimpse-tiny", baselines=[])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(module, gl.VQAData(test=gl.GlyphVQA("test", size=2), num_workers=0), verbose=False)
    assert module.seen == [1.0, 1.0]


def test_kept_tokens_in_the_padding_are_counted() -> None:
    """896 x 448 pixels lie in the two middle rows of four; a cropped or tiled image has no padding."""
    kept = torch.ones(16, dtype=torch.bool)
    item = {"image": 0, "grid": (1, 4, 4), "kept": kept, "region": (0.0, -0.5, 1.0, 1.5)}
    assert kept_in_padding([item]) == 8
    assert kept_in_padding([item | {"kept": kept & (torch.arange(16) < 6)}]) == 4
    assert kept_in_padding([item | {"region": (0.25, 0.0, 0.75, 1.0)}, item | {"region": (math.nan,) * 4}]) == 0
