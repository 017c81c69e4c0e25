"""Records of evaluated questions, and figures over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glimpse_lightning.metrics.exact_match import exact_match

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Record:
    """Result of one question for one model under test (the pruned model, or a baseline).

    Attributes:
        id, family, question, references: values of the sample.
        prediction, full_prediction: answers with pruned and with all tokens.
        score, full_score: scores of these answers by the accuracy metric, in [0, 1]; ``None`` without references.
        kept, total: visual tokens that all stages keep, and visual tokens before pruning.
        entering, layer_mean, kv, flops: other counts of the kept tokens; see ``token_counts.SampleCounts``.
        kl: KL(full || pruned) in nats, mean over the tokens of the first reference, or, without any, of the full
            model's answer.
        evidence: tokens touched by evidence boxes; ``None`` without annotation.
        evidence_recall, evidence_precision, evidence_iou: overlap of the kept tokens with them.
        image: ``Sample.image_name``; ``""`` if the question has no image.
    """

    id: str
    family: str
    question: str
    references: list[str]
    prediction: str
    full_prediction: str
    score: float | None
    full_score: float | None
    kept: int
    total: int
    entering: int | None = None
    layer_mean: float | None = None
    kv: float | None = None
    flops: float | None = None
    kl: float | None = None
    evidence: int | None = None
    evidence_recall: float | None = None
    evidence_precision: float | None = None
    evidence_iou: float | None = None
    image: str = ""


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def retention(record: Record) -> float | None:
    """Share of visual tokens that a question keeps; ``None`` if it has none."""
    return _ratio(record.kept, record.total)


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Figures over ``records``; an undefined figure is ``None``. ``n`` is the number of questions, and ``scored`` the
    number of those with references, over which accuracy is the mean.

    ``relative_accuracy`` is the ratio of the accuracies. ``agreement`` is the share of answers equal to the full
    model's, right or wrong. ``oracle_retention`` is the share of tokens touched by evidence boxes. ``retention`` counts
    the visual tokens that all stages keep; ``entering_retention``, ``layer_retention``, ``kv_retention`` and
    ``flops_ratio`` are the counts of ``token_counts.SampleCounts``.
    """
    accuracy, full_accuracy = _mean(r.score for r in records), _mean(r.full_score for r in records)
    shares = [share for share in map(retention, records) if share is not None]
    return {
        "n": len(records),
        "scored": sum(r.score is not None for r in records),
        "retention": _mean(shares),
        "retention_quantiles": _quantiles(shares),
        "entering_retention": _mean(_ratio(r.entering, r.total) for r in records),
        "layer_retention": _mean(_ratio(r.layer_mean, r.total) for r in records),
        "kv_retention": _mean(_ratio(r.kv, r.total) for r in records),
        "flops_ratio": _mean(r.flops for r in records),
        "accuracy": accuracy,
        "full_accuracy": full_accuracy,
        "relative_accuracy": _ratio(accuracy, full_accuracy),
        "agreement": _mean(exact_match(r.prediction, [r.full_prediction]) for r in records),
        "kl": _mean(r.kl for r in records),
        "evidence_recall": _mean(r.evidence_recall for r in records),
        "evidence_precision": _mean(r.evidence_precision for r in records),
        "evidence_iou": _mean(r.evidence_iou for r in records),
        "oracle_retention": _mean(_ratio(r.evidence, r.total) for r in records if r.evidence is not None),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """``p0`` (the least) to ``p100`` (the most)."""
    if not values:
        return None
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    levels = torch.tensor(values, dtype=torch.float64).quantile(at).tolist()
    return {f"p{round(quantile * 100)}": level for quantile, level in zip(QUANTILES, levels, strict=True)}


def by_family(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each named family, families in alphabetical order."""
    names = sorted({record.family for record in records} - {""})
    return {name: [record for record in records if record.family == name] for name in names}


def snake_case(name: str) -> str:
    """``AttentionRank`` -> ``attention_rank``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


@dataclass
class Summary:
    """Results of one evaluation.

    Attributes:
        records: records of the pruned model, from all ranks.
        baselines: records of each baseline, by name.
    """

    records: list[Record]
    baselines: dict[str, list[Record]]

    @property
    def metrics(self) -> dict[str, Any]:
        """The pruned model's figures, and ``<baseline>_<figure>`` for each baseline."""
        figures = summarise(self.records)
        del figures["n"], figures["scored"]
        for name, records in self.baselines.items():
            for key in ("retention", "accuracy", "relative_accuracy", "agreement", "evidence_recall"):
                figures[f"{snake_case(name)}_{key}"] = summarise(records)[key]
        return figures

    @property
    def families(self) -> dict[str, dict[str, Any]]:
        """The same figures per question family."""
        baselines = {name: by_family(records) for name, records in self.baselines.items()}
        return {
            family: {
                "n": len(records),
                "scored": summarise(records)["scored"],
                **Summary(records, {name: groups.get(family, []) for name, groups in baselines.items()}).metrics,
            }
            for family, records in by_family(self.records).items()
        }
