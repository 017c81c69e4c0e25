"""Metrics of answers, on worked examples of shared/protocols.md."""

from __future__ import annotations

import pytest

from glimpse_lightning.metrics import ANLS, Agreement, AnswerMetric, ExactMatch, RelaxedAccuracy, VQAAccuracy
from glimpse_lightning.metrics.anls import anls
from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.metrics.relaxed_accuracy import relaxed_accuracy
from glimpse_lightning.metrics.text import edit_distance, normalize_vqa
from glimpse_lightning.metrics.vqa_accuracy import vqa_accuracy


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [(" Red  circle. ", ["red circle"], 1), ("red", ["blue", "Red!"], 1), ("red circles", ["red circle"], 0)],
)
def test_exact_match(prediction: str, references: list[str], expected: float) -> None:
    assert exact_match(prediction, references) == expected


@pytest.mark.parametrize(("agree", "expected"), [(10, 1.0), (3, 0.9), (2, 0.6), (1, 0.3), (0, 0.0)])
def test_vqa_accuracy_leaves_one_out(agree: int, expected: float) -> None:
    assert vqa_accuracy("cat", ["cat"] * agree + [f"dog{i}" for i in range(10 - agree)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("Dont know", "don't know"),
        ("3.5 m.", "3.5 m"),
        ("1,000", "1000"),
        ("a man's hat?", "man 's hat"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("well-done - ok", "welldone ok"),
    ],
)
def test_vqa_normaliser(text: str, expected: str) -> None:
    assert normalize_vqa(text) == expected


def test_edit_distance() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Kitten", ["kitten"], 1.0),
        ("abcd", ["abce", "zzzz"], 0.75),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("abc   d", ["abc e"], 1 - 1 / 7),  # distance of squeezed texts over the raw length
    ],
)
def test_anls(prediction: str, references: list[str], expected: float) -> None:
    assert anls(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("105", "100", 1),
        ("106", "100", 0),
        ("50%", "0.5", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("Yes", "yes", 1),
        ("-95", "-100", 1),
        ("abc", "100", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, expected: float) -> None:
    assert relaxed_accuracy(prediction, [reference]) == expected


@pytest.mark.parametrize("kind", [ExactMatch, VQAAccuracy, ANLS, RelaxedAccuracy])
def test_mean_over_updates(kind: type[AnswerMetric]) -> None:
    metric = kind()
    assert metric.compute() == 0
    metric.update(["red", "blue"], [["red"], ["green"]])
    metric.update(["red"], [["red"]])
    assert metric.compute() == pytest.approx(2 / 3)
    metric.update(["red"], [[]])
    assert metric.compute() == pytest.approx(0.5)
    metric.reset()
    metric.update(["blue"], [["red"]])
    assert metric.compute() == 0


def test_bare_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="list of lists of strings, but got a bare string"):
        ExactMatch().update(["red"], ["red"])
    with pytest.raises(ValueError, match="as many `references` as `predictions`"):
        ExactMatch().update(["red"], [])


def test_agreement() -> None:
    metric = Agreement()
    metric.update(["red", "blue.", "x"], ["Red", "blue", "y"])
    assert metric.compute() == pytest.approx(2 / 3)
