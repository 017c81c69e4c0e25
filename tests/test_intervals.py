"""Intervals hold the true mean as often as they say, also where many questions are about one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_lightning.evaluation.intervals import _student, mean_estimate
from glimpse_lightning.runtime.errors import GlimpseError

STUDENT = {2: 4.303, 3: 3.182, 5: 2.571, 7: 2.365, 10: 2.228, 30: 2.042, 199: 1.972}
"""Student's 0.975 quantiles, from a table."""


def ends(*args: Any, **kwargs: Any) -> tuple[float, float]:
    estimate = mean_estimate(*args, **kwargs)
    return estimate.low, estimate.high


@pytest.mark.parametrize("degrees", STUDENT)
def test_quantiles_of_student(degrees: int) -> None:
    assert _student(degrees) == pytest.approx(STUDENT[degrees], abs=0.035 if degrees == 2 else 0.005)


def test_right_and_wrong_answers_by_hand() -> None:
    """Agresti and Coull's: t^2 / 2 right answers and as many wrong ones are added to 99 of 100 independent ones."""
    t = _student(99)
    middle = (0.9 * 99 + t**2 / 2) / (99 + t**2)
    reach = t * (middle * (1 - middle) / (99 + t**2)) ** 0.5
    assert ends([1.0] * 90 + [0.0] * 10) == pytest.approx((middle - reach, middle + reach))
    estimate = mean_estimate([1.0] * 200)
    t = _student(199)
    middle = (200 + t**2 / 2) / (200 + t**2)
    assert estimate.low == pytest.approx(middle - t * (middle * (1 - middle) / (200 + t**2)) ** 0.5)
    assert (estimate.value, estimate.high, estimate.n) == (1.0, 1.0, 200)


def test_differences_by_hand() -> None:
    """Bonett and Price's: t^2 / 4 answers won and as many lost are added."""
    t = _student(199)
    effective, added = (0.15 - 0.05**2) / ((0.15 - 0.05**2) / 199), t**2 / 4
    lost, won = ((share * effective + added) / (effective + 2 * added) for share in (0.1, 0.05))
    reach = t * ((lost + won - (won - lost) ** 2) / (effective + 2 * added)) ** 0.5
    found = ends([-1.0] * 20 + [1.0] * 10 + [0.0] * 170, least=-1.0)
    assert found == pytest.approx((won - lost - reach, won - lost + reach))
    low, high = ends([0.0] * 200, least=-1.0)
    assert -0.03 < low < 0 < high < 0.03  # 200 equal answers are no proof that all are


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=2, max_size=30), st.integers(2, 30))
def test_questions_of_one_image_that_agree_count_as_one(values: list[float], often: int) -> None:
    images = [str(number) for number in range(len(values))]
    many = [value for value in values for _ in range(often)], [image for image in images for _ in range(often)]
    each = ends(values)
    assert ends(values, images) == each
    assert ends(values, [""] * len(values)) == each
    assert ends(*many) == pytest.approx(each)
    narrow = ends(many[0])
    assert narrow[1] - narrow[0] < each[1] - each[0]


@given(st.data())
def test_an_interval_lies_in_the_range_and_holds_the_mean(data: st.DataObject) -> None:
    least = data.draw(st.sampled_from([0.0, -1.0]))
    values = data.draw(st.lists(st.floats(least, 1) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=30))
    images = data.draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=len(values), max_size=len(values)))
    estimate = mean_estimate(values, images, least)
    assert least <= estimate.low <= estimate.value + 1e-9
    assert estimate.value - 1e-9 <= estimate.high <= 1
    order = data.draw(st.permutations(range(len(values))))
    again = ends([values[i] for i in order], [images[i] for i in order], least)
    assert again == pytest.approx(ends(values, images, least), abs=1e-6)


def test_one_image_tells_nothing_about_others() -> None:
    assert ends([1.0] * 50, ["page"] * 50) == (0.0, 1.0)
    assert ends([0.0], least=-1.0) == (-1.0, 1.0)


def test_never_narrower_than_for_independent_questions() -> None:
    """Twenty images of which each has one or two wrong answers agree by chance."""
    values = [float(place >= 1 + page % 2) for page in range(20) for place in range(10)]
    low, high = ends(values, [f"page {page}" for page in range(20) for _ in range(10)])
    alone = ends(values)
    assert high - low >= alone[1] - alone[0]


@pytest.mark.parametrize(("values", "least"), [([], 0.0), ([0.5, 1.5], 0.0), ([-0.1], 0.0), ([float("nan")], -1.0)])
def test_scores_outside_the_range_are_refused(values: list[float], least: float) -> None:
    with pytest.raises(GlimpseError, match="Expected scores from"):
        mean_estimate(values, least=least)


RIGHT = {share: {0.0: 1 - share, 1.0: share} for share in (0.98, 0.9, 0.5)}
ANLS = {0.0: 0.2, 0.6: 0.1, 0.9: 0.1, 1.0: 0.6}
PAIRED = {-1.0: 0.1, 0.0: 0.85, 1.0: 0.05}


@pytest.mark.parametrize(
    ("odds", "images", "each", "correlation"),
    [
        *((RIGHT[share], 200, 1, 0.0) for share in RIGHT),
        *((odds, 40, 25, 0.3) for odds in (RIGHT[0.9], RIGHT[0.5], ANLS, PAIRED)),
        *((odds, 8, 25, 0.3) for odds in (RIGHT[0.98], RIGHT[0.5], ANLS, PAIRED)),
    ],
)
def test_coverage(odds: dict[float, float], images: int, each: int, correlation: float) -> None:
    """Of 300 simulated evaluations 92 % hold the true mean; were questions counted one by one, far fewer would.

    Each image has its own odds, drawn so that two of its questions have the given correlation.
    """
    rng, scores, shares = np.random.default_rng(0), np.array(list(odds)), np.array(list(odds.values()))
    names = [f"image {number}" for number in range(images) for _ in range(each)]
    hits = {"together": 0, "one by one": 0}
    for _ in range(300):
        mine = rng.dirichlet(shares * (1 / correlation - 1), images) if correlation else shares[None].repeat(images, 0)
        drawn = rng.random((images, each, 1)) > mine.cumsum(1)[:, None]
        values = scores[drawn.sum(2).clip(max=len(scores) - 1)].flatten()
        for way, known in {"together": names, "one by one": []}.items():
            low, high = ends(values, known, min(odds))
            hits[way] += low <= scores @ shares <= high
    assert hits["together"] >= 0.92 * 300
    assert correlation == 0 or hits["one by one"] < hits["together"] - 0.1 * 300


def test_scores_that_hardly_vary_are_no_proof() -> None:
    """One small difference among many equal ones says no more about the rest than none does."""
    equal = mean_estimate([0.0] * 200, least=-1.0)
    for odd in (-0.05, 0.001):
        almost = mean_estimate([0.0] * 199 + [odd], least=-1.0)
        assert almost.low <= equal.low + 1e-3 and almost.high >= equal.high - 1e-3


def test_rare_large_differences_among_small_ones_are_covered() -> None:
    rng = np.random.default_rng(0)
    odds, scores = [0.985, 0.0125, 0.0025], np.array([0.0, -0.05, -1.0])
    true = float(scores @ odds)
    found = [mean_estimate(rng.choice(scores, 500, p=odds).tolist(), least=-1.0) for _ in range(400)]
    assert np.mean([each.low <= true <= each.high for each in found]) > 0.93


def test_images_and_scores_belong_together() -> None:
    with pytest.raises(GlimpseError, match="the image of each of 2 scores, but got 1"):
        mean_estimate([0.0, 1.0], ["a"])
