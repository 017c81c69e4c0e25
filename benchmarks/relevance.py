"""How well the cosine of question and visual tokens ranks the evidence, as Markdown: relevance that needs no learning.

python benchmarks/relevance.py > benchmarks/dense/relevance.md

The cosine is that of CDPruner's fallback without its minus: a visual token's embedding, before the language model, with
those of the prompt's text tokens, on average over these (`QuestionRelevance(negate=False)`). Rank correlation is
rank-biserial: the chance that a token of the evidence has the higher cosine of a random pair, less the chance that the
other one has; 1 is perfect relevance, 0 none.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from statistics import mean

import torch
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.scorers import QuestionRelevance

NUMBER, BATCH = 400, 20
CASES = (
    ("glimpse-tiny", "GlyphVQA", gl.GlyphVQA("test", NUMBER)),
    ("glimpse-dense", "DenseGlyphVQA", gl.DenseGlyphVQA("test", NUMBER)),
    ("glimpse-llava", "DenseGlyphVQA", gl.DenseGlyphVQA("test", NUMBER)),
)


class Probe(QuestionRelevance):
    """Relevance, of which it keeps the rank correlation with the evidence of every sample."""

    def __init__(self) -> None:
        super().__init__(negate=False)
        self.correlations: list[float] = []

    def forward(self, tokens: VisualTokens) -> Tensor:
        scores, shown = super().forward(tokens), evidence_mask(tokens, tokens.boxes)
        for sample in range(tokens.num_samples):
            here = tokens.sample == sample
            self.correlations.append(rank_biserial(scores[here], shown[here]))
        return scores


def rank_biserial(scores: Tensor, shown: Tensor) -> float:
    """Rank-biserial correlation of scores [N] with bool [N]."""
    pairs = scores[shown][:, None] - scores[~shown][None, :]
    return float(pairs.sign().mean())


@torch.no_grad()
def correlations(name: str, dataset: gl.GlyphVQA | gl.DenseGlyphVQA, number: int = NUMBER) -> dict[str, list[float]]:
    """Rank correlations of the first questions of ``dataset``, by family."""
    backbone, probe = gl.load_backbone(name), Probe()
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, probe, gl.policies.KeepRatio(1.0))]))
    samples = [dataset[index] for index in range(number)]
    for start in range(0, number, BATCH):
        batch = backbone.collate(samples[start : start + BATCH])
        model.prefill(**batch.inputs, boxes=batch.boxes)
        print(f"{name}: {min(start + BATCH, number)} of {number}", file=sys.stderr)
    found = defaultdict(list)
    for sample, value in zip(samples, probe.correlations, strict=True):
        found["all"].append(value)
        found[str(sample.family)].append(value)
    return found


def main() -> None:
    """Print the table."""
    print(f"`python benchmarks/relevance.py`: {NUMBER} test questions of each benchmark.\n")
    for name, benchmark, dataset in CASES:
        found = correlations(name, dataset)
        families = ["all", *sorted(found.keys() - {"all"})]
        print(f"| {name}, {benchmark} | {' | '.join(families)} |\n|---|{'---|' * len(families)}")
        print(
            f"| rank correlation with the evidence | {' | '.join(f'{mean(found[key]):+.2f}' for key in families)} |\n"
        )


if __name__ == "__main__":
    main()
