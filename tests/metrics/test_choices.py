"""Yes-or-no and multiple-choice metrics and the judge's score, on values computed by hand."""

from __future__ import annotations

import pytest

from glimpse_lightning.metrics import MME, POPE, JudgeScore, MultipleChoice
from glimpse_lightning.metrics.judge_score import judge_score
from glimpse_lightning.metrics.mme import read_mme
from glimpse_lightning.metrics.multiple_choice import multiple_choice
from glimpse_lightning.metrics.pope import read_yes_no


@pytest.mark.parametrize(
    ("answer", "strict", "llava"),
    [
        ("Yes", "yes", "yes"),
        (" no \n", "no", "no"),
        ("Yes.", "other", "yes"),
        ("No, there is not.", "other", "no"),
        ("There is. No doubt", "other", "yes"),  # only the first sentence counts
        ("it is not there", "other", "no"),
        ("NO", "no", "yes"),
        ("nothing", "other", "yes"),
        ("", "other", "yes"),
    ],
)
def test_yes_or_no(answer: str, strict: str, llava: str) -> None:
    assert (read_yes_no(answer), read_yes_no(answer, "llava")) == (strict, llava)


def test_pope() -> None:
    said = ["yes", "yes", "yes", "no", "no", "Yes.", "maybe"]
    truth = ["yes", "yes", "no", "yes", "no", "yes", "no"]
    metric = POPE()
    metric.update(said, [[word] for word in truth])
    # hits 2, false alarms 1, misses 1 ("Yes." is no miss), right: 3 of 7
    expected = {"accuracy": 3 / 7, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 7}
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected)
    lenient = POPE(reading="llava")
    lenient.update(said, [[word] for word in truth])
    # "Yes." is a hit and "maybe" a false alarm now
    expected = {"accuracy": 4 / 7, "precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "yes_ratio": 5 / 7}
    assert {name: float(value) for name, value in lenient.compute().items()} == pytest.approx(expected)


def test_pope_without_any_yes_or_data_is_zero() -> None:
    metric = POPE()
    assert not any(metric.compute().values())
    metric.update(["no"], [["no"]])
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match="`yes` or `no`"):
        metric.update(["no"], [["nope"]])
    with pytest.raises(ValueError, match="`reading`"):
        POPE(reading="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "read"),
    [("Yes", "yes"), ("no.", "no"), ("Y", "yes"), ("n", "no"), ("x", "other"), ("Yes, it is", "yes"),
     ("know", "no"), ("It is not", "other"), ("", "other")],
)  # fmt: skip
def test_read_mme(answer: str, read: str) -> None:
    assert read_mme(answer) == read


def test_mme() -> None:
    metric = MME()
    # existence: image a both right (200), image b one right (50); color: one image, none right; OCR: half a pair
    metric.update(
        ["yes", "no", "yes", "yes", "no", "no", "yes"],
        [["Yes"], ["No"], ["Yes"], ["No"], ["Yes"], ["Yes"], ["Yes"]],
        ids=["a#0", "a#1", "b#0", "b#1", "a#0", "a#1", "c#0"],
        families=["existence"] * 4 + ["color"] * 2 + ["OCR"],
    )
    metric.update(["y", "n"], [["yes"], ["no"]], ids=["d#0", "d#1"], families=["code_reasoning"] * 2)
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "total": 325, "perception": 125, "cognition": 200, "incomplete": 1, "existence": 125, "color": 0,
        "code_reasoning": 200,
    }  # fmt: skip


def test_mme_needs_images_and_categories() -> None:
    with pytest.raises(ValueError, match="by image and category"):
        MME().update(["yes"], [["yes"]])
    with pytest.raises(ValueError, match="'colour'"):
        MME().update(["yes"], [["yes"]], ids=["a"], families=["colour"])


OPTIONS = ["B", "A. red", "B. blue", "C. dark green"]


@pytest.mark.parametrize(
    ("rule", "answer", "expected"),
    [
        ("letter", "B", 1),
        ("letter", "B. blue", 1),
        ("letter", "B.blue", 1),
        ("letter", "(B)", 0),
        ("letter", " b\n", 1),
        ("letter", "b. blue", 0),
        ("letter", "blue", 0),
        ("letter", "", 0),
        ("first", " B, blue", 1),
        ("first", "b", 1),
        ("first", "", 0),
        ("search", "b)", 1),
        ("search", "Blue", 1),  # begins with the letter
        ("search", "The answer is B", 1),
        ("search", "I think (B)", 1),
        ("search", "it is B or so", 1),
        ("search", "none of it", 0),
        ("infer", "B", 1),
        ("infer", "(B).", 1),
        ("infer", "A or B", 0),
        ("infer", "It is a Blue car", 1),
        ("infer", "A blue car stands there", 1),  # the A is an article
        ("infer", "red or blue", 0),
        ("infer", "yellow", 0),
    ],
)
def test_multiple_choice(rule: str, answer: str, expected: float) -> None:
    assert multiple_choice(answer, OPTIONS, rule) == expected  # type: ignore[arg-type]


def test_circular_option() -> None:
    metric = MultipleChoice("infer", circular=True)
    metric.update(["A", "B"], [["A"], ["B"]], ids=["1#0", "1#1"])
    metric.update(["A", "A", "C"], [["A"], ["B"], ["C"]], ids=["2#0", "2#1", "3#0"])
    out = metric.compute()
    assert out["accuracy"] == pytest.approx(4 / 5)
    assert out["circular_accuracy"] == pytest.approx(2 / 3)  # question 2 is wrong under one rotation
    plain = MultipleChoice()
    plain.update(["A", "B"], [["A"], ["A"]])
    assert plain.compute() == 0.5
    with pytest.raises(ValueError, match="rotations"):
        metric.update(["A"], [["A"]])
    with pytest.raises(ValueError, match="`rule`"):
        MultipleChoice("gpt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Score: 0.8", 0.8),
        ("score: 1.", 1.0),
        ("The score: 7", 1.0),
        ("score: 0.2 ... score: 0.3", 0.0),
        ("score 0.8", 0.0),
        ("score: -1", 0.0),
        ("0.8", 0.0),
        ("score: 0.5.", 0.5),
        ("score: ..", 0.0),
        ("score: .5", 0.5),
    ],
)
def test_judge_score(reply: str, expected: float) -> None:
    assert judge_score(reply) == expected


def test_judge_score_weighs_sets_alike() -> None:
    metric = JudgeScore()
    assert metric.compute()["score"] == 0
    metric.update(["score: 1"] * 3 + ["score: 0.5"], ["cub", "cub", "cub", "vsr"])
    metric.update(["nothing"], ["cub"])
    out = {name: float(value) for name, value in metric.compute().items()}
    assert out == pytest.approx({"cub": 0.75, "vsr": 0.5, "score": 0.625})
    with pytest.raises(ValueError, match="'emotic'"):
        metric.update(["score: 1"], ["emotic"])
