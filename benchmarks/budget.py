"""Whether a pruner's budget follows the question, as Markdown.

python benchmarks/budget.py runs/dense_attribution/fit_0/pruner

A question needs as many tokens as the smallest prefix of the oracle's order after the pruner's layer with which the
model answers as it does with all of them: its evidence first, then tokens spread over the page. Questions that need
more than `MOST`, or whose full answer no prefix gives, are left out and counted. Rank correlation is Spearman's, of
kept and needed counts; within families it is the mean over those whose needed counts differ. Two budgets stand next
to the pruner's: a constant for each family, and a linear one of the question's words; both are fitted on validation
questions, whose needed counts are measured alike. The last table keeps the best scores of every question, as many for
each as the threshold keeps on average.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

import glimpse_lightning as gl
from glimpse_lightning.core.segments import rank_in_group
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.evaluation.intervals import mean_estimate
from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.pruner.stage import PruneStage

BATCH, MOST, NEW_TOKENS = 32, 40, 64


@dataclass
class Asked:
    """A question, and what came of it.

    Attributes:
        sample: the question.
        full: the unpruned model's answer.
        kept: number of tokens that the pruner keeps.
        needed: number of tokens that the question needs; `None`: more than `MOST`.
        right, right_fixed: 1 where the answer is right, with the threshold and with as many tokens for every question.
    """

    sample: gl.Sample
    full: str
    kept: int
    right: float
    needed: int | None = None
    right_fixed: float = 0.0


class Bench:
    """A backbone with all tokens, with a pruner, and with the oracle at the pruner's place."""

    def __init__(self, pruner: str, backbone: str) -> None:
        self.backbone = gl.load_backbone(backbone)
        self.full = gl.PrunedVLM(self.backbone)
        loaded = gl.load_pruner(pruner)
        self.pruned = gl.PrunedVLM(self.backbone, loaded)
        last = loaded.stages[-1]
        ordered = PruneStage(last.after_layer, gl.scorers.Oracle(), gl.policies.KeepRatio(1.0), early_kv=last.early_kv)
        self.oracle = gl.PrunedVLM(self.backbone, gl.Pruner([ordered]))

    def ask(self, samples: Sequence[gl.Sample]) -> list[Asked]:
        """The questions, with the answers of the full and of the pruned model."""
        found = []
        for some in batches(samples, "answers"):
            full, _ = self.answers(self.full, some)
            answers, prefill = self.answers(self.pruned, some)
            kept = torch.bincount(prefill.tokens.sample[prefill.kept()], minlength=len(some)).tolist()
            rows = zip(some, full, answers, kept, strict=True)
            found += [Asked(sample, whole, count, right(answer, sample)) for sample, whole, answer, count in rows]
        return found

    def count(self, asked: Sequence[Asked]) -> None:
        """Set what each question needs: prefixes of the oracle's order, from none on."""
        waiting = list(asked)
        for number in range(MOST + 1):
            left = []
            for some in batches(waiting, f"{number} tokens"):
                answers, _ = self.answers(self.oracle, [each.sample for each in some], first(number))
                for each, answer in zip(some, answers, strict=True):
                    if answer == each.full:
                        each.needed = number
                    else:
                        left.append(each)
            waiting = left

    def fix(self, asked: Sequence[Asked]) -> int:
        """Set the answers with one number of tokens for all questions, the mean of what is kept, and return it."""
        number = round(mean(each.kept for each in asked))
        for some in batches(asked, f"{number} tokens each"):
            answers, _ = self.answers(self.pruned, [each.sample for each in some], first(number))
            for each, answer in zip(some, answers, strict=True):
                each.right_fixed = right(answer, each.sample)
        return number

    @torch.no_grad()
    def answers(
        self, model: gl.PrunedVLM, samples: Sequence[gl.Sample], select: object = None
    ) -> tuple[list[str], PrefillOutput]:
        """Greedy answers, and the prefill that they go on from."""
        batch = self.backbone.collate(samples)
        prefill = model.prefill(**batch.inputs, questions=batch.questions, boxes=batch.boxes, select=select)
        ids = model.generate(prefill, max_new_tokens=NEW_TOKENS, do_sample=False)
        return self.backbone.decode(ids), prefill


def first(number: int) -> object:
    """A choice that keeps the `number` tokens of each sample that score best."""

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return rank_in_group(scores, tokens.sample, tokens.num_samples) < number

    return select


def right(answer: str, sample: gl.Sample) -> float:
    """1 where an answer is right."""
    return exact_match(answer, sample.answers)


def batches(items: Sequence[Any], name: str) -> Iterator[Sequence[Any]]:
    """Items in batches, with progress on standard error."""
    for start in range(0, len(items), BATCH):
        print(f"\r{name}: {start} of {len(items)}    ", end="", file=sys.stderr)
        yield items[start : start + BATCH]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation."""
    return float(spearman_corrcoef(torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)))


def correlations(asked: Sequence[Asked], budget: Sequence[float]) -> tuple[float, dict[str, float]]:
    """Rank correlation of a budget with what is needed, over all questions and in each family where it differs."""
    families = defaultdict(list)
    for each, count in zip(asked, budget, strict=True):
        families[each.sample.family].append((count, each.needed))
    within = {
        family: rank_correlation(*zip(*rows, strict=True)) if len({row[0] for row in rows}) > 1 else 0.0
        for family, rows in families.items()
        if len({row[1] for row in rows}) > 1
    }
    return rank_correlation(budget, [each.needed for each in asked]), within


def by_family(known: Sequence[Asked], asked: Sequence[Asked]) -> list[float]:
    """What questions of a family need on average."""
    families = defaultdict(list)
    for each in known:
        families[each.sample.family].append(each.needed)
    return [mean(families[each.sample.family]) for each in asked]


def by_words(known: Sequence[Asked], asked: Sequence[Asked]) -> list[float]:
    """Ridge regression of what is needed on the counts of the question's words."""
    words = sorted({word for each in known for word in each.sample.question.split()})

    def features(some: Sequence[Asked]) -> Tensor:
        rows = [[each.sample.question.split().count(word) for word in words] for each in some]
        return torch.tensor([[1, *row] for row in rows], dtype=torch.float64)

    x, y = features(known), torch.tensor([float(each.needed) for each in known], dtype=torch.float64)
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return (features(asked) @ weights).tolist()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruner", help="folder of a trained pruner, whose policy is a threshold")
    parser.add_argument("--backbone", default="glimpse-dense", help="default: %(default)s")
    parser.add_argument("--number", type=int, default=800, help="test questions; default: %(default)s")
    parser.add_argument("--known", type=int, default=400, help="validation questions of the two fitted budgets")
    options = parser.parse_args()
    bench = Bench(options.pruner, options.backbone)
    whole = bench.ask([*gl.DenseGlyphVQA("test", options.number)])
    known = bench.ask([*gl.DenseGlyphVQA("val", options.known)])
    number = bench.fix(whole)
    bench.count(whole)
    bench.count(known)
    asked = [each for each in whole if each.needed is not None]
    known = [each for each in known if each.needed is not None]
    kept = [float(each.kept) for each in asked]
    budgets = {
        "the pruner": kept,
        "a constant per family": by_family(known, asked),
        "the question's words": by_words(known, asked),
    }
    print(f"{len(asked)} of {len(whole)} test questions: those whose full answers need at most {MOST} tokens.\n")
    lines = {name: correlations(asked, budget) for name, budget in budgets.items()}
    families = sorted(lines["the pruner"][1])
    print(f"| budget | all | within families | {' | '.join(families)} |\n|---|---|---|{'---|' * len(families)}")
    for name, (overall, within) in lines.items():
        cells = " | ".join(f"{within[family]:+.2f}" for family in families)
        print(f"| {name} | {overall:+.2f} | {mean(within.values()):+.2f} | {cells} |")
    print("\n| family | needed | kept |\n|---|---|---|")
    for family in sorted({each.sample.family for each in asked}):
        here = [each for each in asked if each.sample.family == family]
        print(f"| {family} | {mean(each.needed for each in here):.1f} | {mean(each.kept for each in here):.1f} |")
    change = mean_estimate([each.right - each.right_fixed for each in whole], least=-1.0)
    print(
        f"\n| tokens | answers |\n|---|---|\n| threshold, {mean(each.kept for each in whole):.1f} on average | "
        f"{mean(each.right for each in whole):.1%} |\n| {number} for every question | "
        f"{mean(each.right_fixed for each in whole):.1%} |\n| difference, 95 % interval | {change.value:+.1%} "
        f"({change.low:+.1%} to {change.high:+.1%}) |"
    )


if __name__ == "__main__":
    main()
