"""Metrics: accuracy of answers, and what pruning keeps and costs. One file and one import line each.

Each file also has the metric's functional core, under the name of the file.
"""

from glimpse_lightning.metrics.agreement import Agreement
from glimpse_lightning.metrics.anls import ANLS
from glimpse_lightning.metrics.evidence_overlap import EvidenceOverlap
from glimpse_lightning.metrics.exact_match import ExactMatch
from glimpse_lightning.metrics.relaxed_accuracy import RelaxedAccuracy
from glimpse_lightning.metrics.retention import Retention
from glimpse_lightning.metrics.text import AnswerMetric
from glimpse_lightning.metrics.token_kl import TokenKL
from glimpse_lightning.metrics.vqa_accuracy import VQAAccuracy

__all__ = [
    "ANLS",
    "Agreement",
    "AnswerMetric",
    "EvidenceOverlap",
    "ExactMatch",
    "RelaxedAccuracy",
    "Retention",
    "TokenKL",
    "VQAAccuracy",
]
