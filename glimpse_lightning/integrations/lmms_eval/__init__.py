"""Plugin of lmms-eval (extra ``lmms-eval``): ``--model glimpse`` evaluates any recipe or pruner on its tasks."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The manifest of the entry point ``lmms_eval.models``; the model itself is imported when it is first used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("glimpse", simple_class_path=f"{__name__}.model.Glimpse")
