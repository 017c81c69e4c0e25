"""Evaluation of the full model, the pruned model and baselines on the same questions."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from glimpse_lightning.runtime.errors import no_attribute

_HOMES = {
    "Evaluator": "evaluation.evaluator",
    "answer_log_probs": "evaluation.evaluator",
    "baseline_models": "evaluation.baselines",
    "training_free_scorers": "evaluation.baselines",
    "token_counts": "evaluation.evaluator",
    "kept_and_total": "evaluation.evaluator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise no_attribute(__name__, name, list(_HOMES))
    return getattr(import_module(f"glimpse_lightning.{_HOMES[name]}"), name)
