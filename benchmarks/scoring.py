"""Seconds that each metric takes for 100,000 predictions, as Markdown.

OMP_NUM_THREADS=1 python benchmarks/scoring.py > benchmarks/scoring.md

Time is the process's own (user and system), so a busy machine changes little. Predictions come in batches of 50, as a
suite has them; texts are drawn from 5,000 words and are hardly ever equal, so no cache of a normaliser helps.
"""

from __future__ import annotations

import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from glimpse_lightning import __version__
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.metrics import (
    ANLS,
    MME,
    POPE,
    Agreement,
    EvidenceOverlap,
    ExactMatch,
    JudgeScore,
    MultipleChoice,
    OracleGap,
    RelaxedAccuracy,
    Retention,
    TokenCounts,
    TokenKL,
    VQAAccuracy,
)  # fmt: skip
from glimpse_lightning.metrics.judge_score import VISUAL_COT_SETS
from glimpse_lightning.metrics.mme import CATEGORIES

NUMBER, BATCH, LIMIT = 100_000, 50, 10.0
RNG = random.Random(0)
WORDS = ["".join(RNG.choices("abcdefghijklmnopqrstuvwxyz'-.,", k=RNG.randint(2, 9))) for _ in range(5000)]
OPTIONS = ["B", "A. a red car", "B. two blue cars", "C. nothing", "D. a dog"]
FACTS = ModelFacts(28, 28, 4, 128, 3584, 18944, 1e-6, 32, 1280)  # Qwen2.5-VL-7B
TOKENS = 64  # visual tokens of a question, where a metric counts them

Row = tuple[Any, ...]


def text(words: int = 4) -> str:
    return " ".join(RNG.choices(WORDS, k=words))


def answer(references: int) -> Callable[[int], Row]:
    """A prediction of about 25 characters, now and then equal to one of its references."""

    def draw(index: int) -> Row:
        few = [text() for _ in range(3)]
        truth = [RNG.choice(few) for _ in range(references)]
        return (truth[0] if index % 3 == 0 else text(), truth)

    return draw


def choice(index: int) -> Row:
    return (RNG.choice(["B", "(B)", "The car is blue", text()]), OPTIONS, f"{index // 4}#{index % 4}", "")


def mme(index: int) -> Row:
    return (RNG.choice(["Yes", "no", text()]), ["Yes"], f"{index // 2}#{index % 2}", CATEGORIES[index // 2 % 14])


def by_column(metric: Any, rows: list[Row]) -> None:
    metric.update(*(list(column) for column in zip(*rows, strict=True)))


def tensors(metric: Any, rows: list[Row]) -> None:
    metric.update(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def masks(metric: Any, rows: list[Row]) -> None:
    keep, sample = torch.rand(2, len(rows) * TOKENS) < 0.1, torch.arange(len(rows)).repeat_interleave(TOKENS)
    if isinstance(metric, TokenCounts):
        metric.update(list(keep), (-1, 18), sample, torch.full((len(rows),), 40), FACTS)
    else:
        metric.update(keep[0], keep[1], sample, len(rows))


def logits(metric: Any, rows: list[Row]) -> None:
    metric.update(*torch.randn(2, len(rows), 1, 512), torch.ones(len(rows), 1))


CASES: dict[str, tuple[Any, Callable[[int], Row], Callable[[Any, list[Row]], None]]] = {
    "ExactMatch": (ExactMatch(), answer(1), by_column),
    "ExactMatch, GQA": (ExactMatch("all"), answer(1), by_column),
    "VQAAccuracy": (VQAAccuracy(), answer(10), by_column),
    "VQAAccuracy, vqav2": (VQAAccuracy("vqav2"), answer(10), by_column),
    "VQAAccuracy, vqav2-0.3": (VQAAccuracy("vqav2-0.3"), answer(10), by_column),
    "ANLS, three references": (ANLS(), answer(3), by_column),
    "ANLS, normalised": (ANLS("normalised"), answer(3), by_column),
    "RelaxedAccuracy": (RelaxedAccuracy(), lambda i: (f"{i}%", [f"{i + RNG.random():.3f}"]), by_column),
    "POPE": (POPE(), lambda i: (RNG.choice(["yes", "No", "Yes."]), ["yes"]), by_column),
    "POPE, LLaVA": (POPE("llava"), lambda i: (RNG.choice(["yes", text()]), ["yes"]), by_column),
    "MME": (MME(), mme, by_column),
    **{f"MultipleChoice, {rule}": (MultipleChoice(rule), choice, by_column) for rule in ("letter", "first", "search")},
    "MultipleChoice, infer, circular": (MultipleChoice("infer", circular=True), choice, by_column),
    "JudgeScore": (JudgeScore(), lambda i: (f"{text()} score: 0.{i % 10}", VISUAL_COT_SETS[i % 12]), by_column),
    "Agreement": (Agreement(), lambda i: (text(), text()), by_column),
    "Retention": (Retention(), lambda i: (i % 60, 60 + i % 9), tensors),
    "OracleGap": (OracleGap(), lambda i: (0.5, 1.0, i % 9, i % 7, 9.0), tensors),
    "EvidenceOverlap, 64 tokens": (EvidenceOverlap(), lambda i: (), masks),
    "TokenCounts, 64 tokens": (TokenCounts(), lambda i: (), masks),
    "TokenKL, 512 words": (TokenKL(first=True), lambda i: (), logits),
}


def seconds() -> Iterator[tuple[str, float]]:
    """Each metric's time; predictions are drawn beforehand."""
    for name, (metric, draw, add) in CASES.items():
        rows = [draw(index) for index in range(NUMBER)]
        started = time.process_time()
        for start in range(0, NUMBER, BATCH):
            add(metric, rows[start : start + BATCH])
        metric.compute()
        yield name, time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    figures = dict(seconds())
    print("# Scoring 100,000 predictions\n")
    print("Command: `OMP_NUM_THREADS=1 python benchmarks/scoring.py > benchmarks/scoring.md`; one thread, user and")
    print(f"system seconds of the process, batches of {BATCH}. Limit: {LIMIT:.0f} s.")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, glimpse_lightning {__version__},")
    print(f"one core of an {platform.machine()} machine with other work on it.\n")
    print("| metric | s |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} |")
    slow = [name for name, value in figures.items() if value > LIMIT]
    if slow:
        sys.exit(f"Slower than {LIMIT} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
