"""Metrics: accuracy of answers, and tokens and FLOPs after pruning. One file and one import line each.

Each file also holds the function that computes the metric.

Examples:
    >>> import glimpse_lightning as gl
    >>> metric = gl.metrics.ANLS()
    >>> metric.update(["heart"], [["heart", "a heart"]])
    >>> metric.compute()
    tensor(1.)
"""

from glimpse_lightning.metrics.agreement import Agreement
from glimpse_lightning.metrics.anls import ANLS
from glimpse_lightning.metrics.evidence_overlap import EvidenceOverlap
from glimpse_lightning.metrics.exact_match import ExactMatch
from glimpse_lightning.metrics.judge_score import JudgeScore
from glimpse_lightning.metrics.mme import MME
from glimpse_lightning.metrics.multiple_choice import MultipleChoice
from glimpse_lightning.metrics.oracle_gap import OracleGap
from glimpse_lightning.metrics.pope import POPE
from glimpse_lightning.metrics.relaxed_accuracy import RelaxedAccuracy
from glimpse_lightning.metrics.retention import Retention
from glimpse_lightning.metrics.text import AnswerMetric
from glimpse_lightning.metrics.token_counts import TokenCounts
from glimpse_lightning.metrics.token_kl import TokenKL
from glimpse_lightning.metrics.vqa_accuracy import VQAAccuracy
from glimpse_lightning.runtime.errors import suggest_names

__all__ = [
    "ANLS",
    "MME",
    "POPE",
    "Agreement",
    "AnswerMetric",
    "EvidenceOverlap",
    "ExactMatch",
    "JudgeScore",
    "MultipleChoice",
    "OracleGap",
    "RelaxedAccuracy",
    "Retention",
    "TokenCounts",
    "TokenKL",
    "VQAAccuracy",
]

suggest_names(__name__)
