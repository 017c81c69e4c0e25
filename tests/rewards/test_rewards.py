"""Rewards one by one, and their weighted sum."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from golden_numbers import GOLDEN

from glimpse_lightning import rewards
from glimpse_lightning.rewards import CombinedReward, RewardFacts
from glimpse_lightning.runtime.errors import GlimpseError


def test_scores_of_the_reference() -> None:
    scores = json.loads((GOLDEN / "losses" / "losses.json").read_text())["scores"]
    pairs = list(zip(scores["completion"], scores["answer"], strict=True))
    box = r".*\[\d+, \d+, \d+, \d+\].*"
    assert [rewards.format(answer, box) for answer, _ in pairs] == scores["one_box_format"]
    assert rewards.box_iou(*pairs[-1]) == pytest.approx(scores["one_box_iou(last only)"][0])
    # Where we differ on purpose: upper case and the wording around a letter do not make an answer wrong.
    assert [rewards.exact_match(answer, [true]) for answer, true in pairs] == [1.0, 0.0, 0.0, 0.0]
    assert rewards.choice(*pairs[2]) == 1.0 != scores["single_choice"][2]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("B", "B", 1), ("b.", "B", 1), ("(B)", "B", 1), ("B) a dog", "(B)", 1), ("Answer: B", "B", 1), ("A", "B", 0),
        ("(A) or (B)", "B", 0), ("", "B", 0), ("a dog", "A", 0), ("**B**", "B", 1), ("(b) a dog", "B", 1),
        ("The answer is b.", "B", 1), ("The answer is (B), a dog.", "B", 1), ("Option B: a T shirt", "B", 1),
        ("I think the answer is B", "B", 1), ("B is correct", "B", 1), ("A is correct", "A", 1),
        ("B\nBecause it is.", "B", 1),
        # All letters that are named, or none: a policy must not learn to list them.
        ("A or B", "B", 0), ("Both A and B", "B", 0), ("A, B, C or D", "D", 0), ("A/B", "B", 0), ("A B", "B", 0),
        ("(A) (B)", "A", 0), ("B. Or maybe A.", "B", 0), ("a or b", "B", 0), ("B. Surely C", "B", 0),
        # Nor where one is ruled out, or is a word, or a part of a name.
        ("The answer is not B", "B", 0), ("Not B", "B", 0), ("It isn't B", "B", 0),
        ("Anything but not option B", "B", 0), ("B is wrong", "B", 0), ("neither A nor B", "B", 0),
        ("The answer is a dog", "A", 0),
        ("Answer: a red car", "A", 0), ("A dog", "A", 0), ("I do not know", "I", 0),
        ("answer: I do not know", "I", 0), ("vitamin C", "C", 0),
        ("The answer is a dog, so (B)", "B", 1), ("C++", "C", 0), ("B-side", "B", 0),
    ],
)  # fmt: skip
def test_choice(answer: str, reference: str, expected: float) -> None:
    assert rewards.choice(answer, reference) == expected


def test_box_iou() -> None:
    assert rewards.box_iou("[0, 0, 1, 1]", "[0, 0, 2, 1]") == 0.5
    for answer in ("none", "[0,0,1]", "[0,0,1,1] [0,0,1,1]", "[1,1,0,0]", "[5, 5, 6, 6]"):
        assert rewards.box_iou(answer, "[0, 0, 2, 1]") == 0
    with pytest.raises(ValueError, match="one box"):
        rewards.box_iou("[0, 0, 1, 1]", "yes")


def test_length_and_pruning_rate() -> None:
    assert [rewards.length(n, True, free=4, longest=8) for n in (1, 4, 6, 8, 99)] == [0, 0, -0.5, -1, -1]
    assert rewards.length(1, False) == -1
    assert rewards.pruning_rate(0.25) == 0.75
    assert rewards.pruning_rate(0.05, target=0.1) == rewards.pruning_rate(0.1, target=0.1) == 0.9


def test_answers_without_references_get_nothing() -> None:
    names = ("anls", "exact_match", "vqa_accuracy")
    assert all(getattr(rewards, name)("yes", []) == 0 for name in names)
    assert all(getattr(rewards, name)("yes", ["yes"]) == 1 for name in names)


def brevity(answer: str, unit: float, reference: str) -> float:
    """A reward of a user's own."""
    return unit * len(answer) / len(reference)


class Unknown:
    """A reward that does not know."""

    def __call__(self, answer: str) -> float:
        return math.nan if answer == "?" else 1.0


def test_weighted_sum_with_options_and_own_rewards() -> None:
    reward = CombinedReward(
        {
            "exact_match": 1,
            "pruning_rate": {"weight": 0.5, "target": 0.2},
            f"{__name__}.brevity": {"weight": 2.0, "unit": 3.0},
            f"{__name__}.Unknown": 0.25,
        }
    )
    answers = [RewardFacts("q", "yes", ["Yes"], retention=0.1), RewardFacts("q", "?", ["Yes"], retention=0.6)]
    out = reward(answers)
    assert out.total[0] == pytest.approx(1 + 0.5 * 0.8 + 2 * 3 + 0.25)
    assert math.isnan(out.total[1])
    assert out.parts["pruning_rate"] == [0.8, 0.4]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({}, "at least one reward"),
        ({"exact": 1.0}, "Expected a reward out of anls, box_iou"),
        ({"exact_match": "much"}, "to be a number"),
        ({"format": {"patern": "x"}}, "no option patern; it has pattern"),
        ({f"{__name__}.brevity": 1.0}, "asks for unit"),
    ],
)
def test_settings_that_mean_nothing(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(GlimpseError, match=message):
        CombinedReward(setting)
