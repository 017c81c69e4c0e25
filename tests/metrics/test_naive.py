"""Metrics next to scorers written a second time, plainly, from the benchmarks' own rules."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest

from glimpse_lightning.metrics import MME, POPE, JudgeScore, MultipleChoice
from glimpse_lightning.metrics.anls import anls
from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.metrics.judge_score import VISUAL_COT_SETS, judge_score
from glimpse_lightning.metrics.mme import CATEGORIES, COGNITION, PERCEPTION
from glimpse_lightning.metrics.relaxed_accuracy import relaxed_accuracy
from glimpse_lightning.metrics.vqa_accuracy import vqa_accuracy

WORDS = """the a two Two none cat cats cat. red, blue red,blue 1,000 1000 1 10 3.5 5% 50% 0.5 -1 well-done ( ) ? ! . ,
    man's dont isn't can't / yes no Yes YES""".split()
NUMBERS = "none zero one two three four five six seven eight nine ten"
SHORT = {"dont": "don't", "isnt": "isn't", "cant": "can't"}


def say(rng: random.Random, most: int = 4) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def naive_vqa(said: str, answers: list[str], mode: str) -> float:
    def punctuation(text: str) -> str:
        out = text
        for mark in ';/[]"{}()=+\\_-><@`,?!':
            if mark + " " in text or " " + mark in text or re.search(r"[0-9],+[0-9]", text):
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        return "".join(
            letter for i, letter in enumerate(out) if letter != "." or (i + 1 < len(out) and out[i + 1].isdigit())
        )

    def rest(text: str) -> str:
        words = text.lower().split()
        digits = dict(zip(NUMBERS.split(), [0, *range(11)], strict=True))
        words = [str(digits.get(word, word)) for word in words]
        return " ".join(SHORT.get(word, word) for word in words if word not in ("a", "an", "the"))

    def whole(text: str) -> str:
        if mode == "full":
            text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
        text = text.replace("\n", " ").replace("\t", " ").strip()
        alike = len({answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers}) == 1
        return text if mode == "vqav2-0.3" and alike else rest(punctuation(text))

    total = 0.0
    for left_out in range(len(answers)):
        others = [whole(answer) for i, answer in enumerate(answers) if i != left_out]
        total += min(1.0, others.count(whole(said)) / 3)
    return total / len(answers)


@pytest.mark.parametrize("mode", ["full", "vqav2", "vqav2-0.3"])
def test_vqa_accuracy(mode: str) -> None:
    rng, seen = random.Random(0), Counter[float]()
    for _ in range(600):
        few = [say(rng, 2) for _ in range(rng.randint(1, 3))]
        answers = [rng.choice(few) for _ in range(10)]
        said = rng.choice([say(rng, 2), rng.choice(answers), rng.choice(answers).title() + "."])
        score = vqa_accuracy(said, answers, mode)  # type: ignore[arg-type]
        assert score == pytest.approx(naive_vqa(said, answers, mode)), (said, answers)
        seen[round(score, 1)] += 1
    assert {0.0, 0.3, 0.6, 0.9, 1.0} <= set(seen)


def edits(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    table = [list(range(len(b) + 1))] + [[i] + [0] * len(b) for i in range(1, len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


@pytest.mark.parametrize("lengths", ["raw", "normalised"])
def test_anls(lengths: str) -> None:
    rng = random.Random(1)
    between = 0
    for _ in range(300):
        answers = [say(rng) for _ in range(rng.randint(1, 3))]
        said = rng.choice([say(rng), answers[0][1:], answers[0].upper() + "x", "  " + answers[-1].replace(" ", "  ")])
        distances = []
        for answer in answers:
            a, b = re.sub(r"\s+", " ", said.strip().lower()), re.sub(r"\s+", " ", answer.strip().lower())
            longest = max(len(said), len(answer)) if lengths == "raw" else max(len(a), len(b))
            distances.append(edits(a, b) / longest)
        expected = 1 - min(distances)
        expected = 0.0 if expected < 0.5 else expected
        assert anls(said, answers, lengths) == pytest.approx(expected)  # type: ignore[arg-type]
        between += 0 < expected < 1
    assert between > 50


def test_relaxed_accuracy() -> None:
    def value(text: str) -> float | None:
        try:
            return float(text.replace("%", "")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    rng, seen = random.Random(2), Counter[float]()
    for _ in range(1000):
        number = rng.choice([0, 1, -20, 0.5, 100, 3.75])
        truth = rng.choice([f"{number}", f"{number}%", "Blue", "yes"])
        near = number * (1 + rng.uniform(-0.1, 0.1))
        said = rng.choice([f"{near}", f"{near}%", f"{number}", f"{number}%", "blue", "no"])
        p, t = value(said), value(truth)
        expected = abs(p - t) <= 0.05 * abs(t) if p is not None and t else said.lower() == truth.lower()
        assert relaxed_accuracy(said, [truth]) == expected, (said, truth)
        seen[expected] += 1
    assert min(seen[True], seen[False]) > 100


def test_exact_match() -> None:
    rng = random.Random(3)
    for _ in range(500):
        truth = say(rng, 2)
        said = rng.choice([say(rng, 2), truth.upper(), truth + "!"])
        bare = ["".join(letter for letter in text.lower() if letter.isalnum() or letter == " ").strip()
                for text in (said, truth)]  # fmt: skip
        assert exact_match(said, [truth], "all") == (bare[0] == bare[1])


def test_pope() -> None:
    rng = random.Random(4)
    pairs = [(rng.choice(["yes", "no", " Yes ", "No", "Yes.", "it is"]), rng.choice(["yes", "no"])) for _ in range(500)]
    metric = POPE()
    metric.update([said for said, _ in pairs], [[truth] for _, truth in pairs])
    table = Counter((said.lower().strip(), truth) for said, truth in pairs)
    hits, false, missed = table["yes", "yes"], table["yes", "no"], table["no", "yes"]
    precision, recall = hits / (hits + false), hits / (hits + missed)
    expected = {
        "accuracy": (hits + table["no", "no"]) / 500,
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / (2 * hits + false + missed),
        "yes_ratio": (hits + false) / 500,
    }
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected)


def test_mme() -> None:
    rng, metric = random.Random(5), MME()
    points: dict[str, list[float]] = defaultdict(list)
    for category in CATEGORIES:
        for image in range(rng.randint(1, 7)):
            truth = [rng.choice(["yes", "no"]) for _ in range(2)]
            said = [rng.choice(["Yes", "No", "Yes, it is.", "n", "It is"]) for _ in range(2)]
            right = [{"y": "yes", "n": "no"}.get(s[0].lower()) == t for s, t in zip(said, truth, strict=True)]
            points[category].append(50 * sum(right) + 100 * all(right))
            metric.update(said, [[t] for t in truth], ids=[f"{image}#0", f"{image}#1"], families=[category] * 2)
    expected = {name: sum(values) / len(values) for name, values in points.items()}
    expected["perception"] = sum(expected[name] for name in PERCEPTION)
    expected["cognition"] = sum(expected[name] for name in COGNITION)
    expected |= {"total": expected["perception"] + expected["cognition"], "incomplete": 0}
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected)
    assert expected["total"] <= 2800


def test_circular_choice() -> None:
    rng, metric, by_question = random.Random(6), MultipleChoice("infer", circular=True), defaultdict(list)
    for question in range(60):
        for turn in range(rng.randint(1, 4)):
            truth, said = rng.choice("ABC"), rng.choice(["A", "B.", "(C)", "none of them"])
            metric.update([said], [[truth, "A. x", "B. y", "C. z"]], ids=[f"{question}#{turn}"])
            by_question[question].append(said.strip("().") == truth)
    out = metric.compute()
    assert isinstance(out, dict)
    everything = [right for turns in by_question.values() for right in turns]
    assert float(out["accuracy"]) == pytest.approx(sum(everything) / len(everything))
    assert float(out["circular_accuracy"]) == pytest.approx(sum(map(all, by_question.values())) / len(by_question))


def test_judge() -> None:
    rng, metric, by_set = random.Random(7), JudgeScore(), defaultdict(list)
    for _ in range(300):
        name, number = rng.choice(VISUAL_COT_SETS), round(rng.uniform(0, 1.3), 2)
        reply, expected = rng.choice(
            [(f"Score: {number}", min(1.0, number)), (f"score: {number} score: 1", 0.0), (f"{number}", 0.0)]
        )
        assert judge_score(reply) == expected
        metric.update([reply], [name])
        by_set[name].append(expected)
    means = {name: sum(values) / len(values) for name, values in by_set.items()}
    expected_means = {"score": sum(means.values()) / len(means), **means}
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected_means)
