"""Accuracy of the VQA challenge."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning.metrics.text import AnswerMetric, normalize_vqa


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Mean over annotators of ``min(1, matches among the others / 3)``, after the challenge's normaliser.

    Antol et al., arXiv 1505.00468, as EvalAI and lmms-eval compute it. With ten annotators: all agree 1.0, three 0.9,
    two 0.6, one 0.3. A single reference has no others to match: then the score is 1 on a match.
    """
    answer = normalize_vqa(prediction)
    hits = [answer == normalize_vqa(reference) for reference in references]
    if len(hits) == 1:
        return float(hits[0])
    return sum(min(1.0, (sum(hits) - hit) / 3) for hit in hits) / len(hits)


class VQAAccuracy(AnswerMetric):
    """Mean accuracy of the VQA challenge; see :func:`vqa_accuracy`."""

    score = staticmethod(vqa_accuracy)
