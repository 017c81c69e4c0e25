"""Glimpse Lightning: dynamic visual-token pruning for vision-language models, out of swappable parts.

>>> import glimpse_lightning as gl
>>> backbone = gl.load_backbone("glimpse-tiny")
>>> pruner = gl.Pruner([gl.PruneStage(after_layer=1, scorer=gl.scorers.Random(), policy=gl.policies.KeepRatio(0.1))])
>>> model = gl.PrunedVLM(backbone, pruner)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glimpse_lightning.version import __version__

if TYPE_CHECKING:
    from glimpse_lightning import (
        backbones,
        callbacks,
        data,
        metrics,
        objectives,
        policies,
        reducers,
        rewards,
        scorers,
        testing,
    )
    from glimpse_lightning.adapters import LoRA
    from glimpse_lightning.backbones import load_backbone, wrap_backbone
    from glimpse_lightning.backbones.base import Backbone
    from glimpse_lightning.checkpoints import load_pruner, save_pruner
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.data.datamodule import VQAData
    from glimpse_lightning.data.glyph_vqa import GlyphVQA
    from glimpse_lightning.data.hub import HubVQA
    from glimpse_lightning.data.jsonl import JSONL
    from glimpse_lightning.data.sample import Sample
    from glimpse_lightning.data.table import Table
    from glimpse_lightning.data.visual_cot import VisualCoTBenchmark, VisualCoTTrain
    from glimpse_lightning.errors import GlimpseError
    from glimpse_lightning.evaluation_module import EvaluationModule
    from glimpse_lightning.model import PrunedVLM
    from glimpse_lightning.module import PruningModule
    from glimpse_lightning.objectives.base import Objective
    from glimpse_lightning.policies.base import Policy
    from glimpse_lightning.pruner import Pruner, PruneStage
    from glimpse_lightning.reducers.base import Reducer
    from glimpse_lightning.resolution import ResolutionCut
    from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer
    from glimpse_lightning.suite import SuiteData, SuiteModule
    from glimpse_lightning.visual_tokens import ModelFacts, VisionAttention, VisionKeys, VisualTokens
    from glimpse_lightning.vlm_module import VLMModule

# Where each public name lives. Imported when first asked for, so that `--help` does not wait for transformers.
_HOMES = {
    "AttentionProbe": "scorers.base",
    "Backbone": "backbones.base",
    "Batch": "data.batch",
    "EvaluationModule": "evaluation_module",
    "GlimpseError": "errors",
    "GlyphVQA": "data.glyph_vqa",
    "HubVQA": "data.hub",
    "JSONL": "data.jsonl",
    "LoRA": "adapters",
    "ModelFacts": "visual_tokens",
    "Objective": "objectives.base",
    "Policy": "policies.base",
    "PruneStage": "pruner",
    "PrunedVLM": "model",
    "Pruner": "pruner",
    "PruningModule": "module",
    "Reducer": "reducers.base",
    "Requires": "scorers.base",
    "ResolutionCut": "resolution",
    "Sample": "data.sample",
    "Scorer": "scorers.base",
    "SuiteData": "suite",
    "SuiteModule": "suite",
    "Table": "data.table",
    "VLMModule": "vlm_module",
    "VQAData": "data.datamodule",
    "VisionAttention": "visual_tokens",
    "VisionKeys": "visual_tokens",
    "VisualCoTBenchmark": "data.visual_cot",
    "VisualCoTTrain": "data.visual_cot",
    "VisualTokens": "visual_tokens",
    "load_backbone": "backbones",
    "load_pruner": "checkpoints",
    "save_pruner": "checkpoints",
    "wrap_backbone": "backbones",
}
_MODULES = (
    "backbones",
    "callbacks",
    "data",
    "metrics",
    "objectives",
    "policies",
    "reducers",
    "rewards",
    "scorers",
    "testing",
)
__all__ = sorted([*_HOMES, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
