"""Metrics of answers, on worked examples of their definitions."""

from __future__ import annotations

import pytest

from glimpse_lightning.metrics import ANLS, Agreement, AnswerMetric, ExactMatch, RelaxedAccuracy, VQAAccuracy
from glimpse_lightning.metrics.anls import anls
from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.metrics.relaxed_accuracy import relaxed_accuracy
from glimpse_lightning.metrics.vqa_accuracy import vqa_accuracy
from glimpse_lightning.metrics.vqa_text import normalize_vqa, normalize_vqav2


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        (" Red  circle. ", ["red circle"], 1), ("red", ["blue", "Red!"], 1), ("red circles", ["red circle"], 0),
        ("\u201cRed\u201d", ["'red'."], 1), ("yes!!", ["Yes"], 1), ("Wait\u2026", ["wait"], 1), ("5.", ["5"], 1),
        # What carries meaning counts: signs, operators, units, names, brackets; marks alone are no empty answer.
        ("-5", ["5"], 0), ("+", ["-"], 0), ("<", [">"], 0), ("C++", ["C"], 0), ("C#", ["C"], 0), (".5", ["5"], 0),
        ("50%", ["50"], 0), ("$5", ["5"], 0), ("5!", ["5"], 0), ("(1, 2)", ["1, 2"], 0), ("#", ["*"], 0),
        ("", ["?"], 0),
        ("?", ["."], 0), ("?", ["?"], 1), ("", [""], 1), ("-", ["\u2013"], 0), ("@home", ["home"], 0),
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Kitten", ["kitten"], 1.0),
        ("abcd", ["abce", "zzzz"], 0.75),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("abc   d", ["abc e"], 1 - 1 / 7),  # distance of squeezed texts over the raw length
        ("abß", ["aby"], 1 - 1 / 4),  # whose letters are counted in upper case
        (" ", [""], 1.0),
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
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("50%%", "50%", 1),
        ("%", "%", 1),
        ("nan", "1", 0),
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


def test_anls_over_normalised_lengths() -> None:
    assert anls("abc   d", ["abc e"], "normalised") == pytest.approx(1 - 1 / 5)
    with pytest.raises(ValueError, match="`lengths`"):
        ANLS(lengths="long")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prediction", "reference", "ends", "everywhere"),
    [("T-shirt.", "tshirt", 0, 1), ("t-shirt", "t-shirt", 1, 1), ("a  dog", "a dog", 1, 0), ("'left'", "Left", 1, 1)],
)
def test_exact_match_of_gqa(prediction: str, reference: str, ends: float, everywhere: float) -> None:
    assert exact_match(prediction, [reference]) == ends
    assert exact_match(prediction, [reference], "all") == everywhere


@pytest.mark.parametrize(
    ("prediction", "references", "full", "vqav2", "old"),
    [
        ("cat", ["cat"] * 10, 1.0, 1.0, 1.0),
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9, 0.9, 0.9),
        ("The cat", ["the cat"] * 10, 1.0, 1.0, 0.0),  # the old way leaves unanimous references, and what is said
        ("the\tcat ", ["the cat"] * 10, 1.0, 1.0, 1.0),
        ("the cat", ["the cat"] * 9 + ["dog"], 1.0, 1.0, 1.0),
        ("man's", ["man 's"] * 9 + ["x"], 1.0, 0.0, 0.0),  # only `full` takes 's apart
        ("Two", ["2"] * 4 + ["two"] * 6, 1.0, 1.0, 1.0),
        ("1,000", ["1,000"] * 9 + ["1000"], 1.0, 1.0, 1.0),
        ("red,blue", ["redblue"] * 9 + ["x"], 1.0, 0.0, 0.0),  # only `full` drops this comma
        ("red-blue", ["red-blue 1,000"] * 9 + ["x"], 0.0, 0.0, 0.0),
    ],
)
def test_vqa_normalisers(prediction: str, references: list[str], full: float, vqav2: float, old: float) -> None:
    assert vqa_accuracy(prediction, references) == pytest.approx(full)
    assert vqa_accuracy(prediction, references, "vqav2") == pytest.approx(vqav2)
    assert vqa_accuracy(prediction, references, "vqav2-0.3") == pytest.approx(old)


def test_punctuation_beside_a_number_with_a_comma_is_dropped() -> None:
    assert normalize_vqav2("black/white") == "black white"
    assert normalize_vqav2("black/white 1,000") == "blackwhite 1000"


@pytest.mark.parametrize(
    ("short", "whole"),
    [("dont", "don't"), ("yalld've", "yalld've"), ("y'alld've", "y'all'd've"), ("couldntve", "couldntve"),
     ("couldn'tve", "couldn't've"), ("im", "im"), ("somebody'd", "somebodyd"), ("twas", "'twas")],
)  # fmt: skip
def test_contractions(short: str, whole: str) -> None:
    assert normalize_vqa(short) == whole
