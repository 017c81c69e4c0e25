"""Glimpse Lightning: dynamic visual-token pruning for vision-language models, composed of exchangeable parts.

>>> import glimpse_lightning as gl
>>> backbone = gl.load_backbone("glimpse-tiny")
>>> pruner = gl.Pruner([gl.PruneStage(after_layer=1, scorer=gl.scorers.Random(), policy=gl.policies.KeepRatio(0.1))])
>>> model = gl.PrunedVLM(backbone, pruner)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.errors import no_attribute
from glimpse_lightning.runtime.version import __version__

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
    from glimpse_lightning.backbones import load_backbone, wrap_backbone
    from glimpse_lightning.backbones.base import Backbone
    from glimpse_lightning.backbones.lora import LoRA
    from glimpse_lightning.core.visual_tokens import (
        ModelFacts,
        VisionAttention,
        VisionKeys,
        VisionPixels,
        VisualTokens,
    )
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.data.datamodule import VQAData
    from glimpse_lightning.data.dense_glyph_vqa import DenseGlyphVQA
    from glimpse_lightning.data.glyph_vqa import GlyphVQA
    from glimpse_lightning.data.jsonl import JSONL
    from glimpse_lightning.data.sample import Sample
    from glimpse_lightning.data.tables.hub import HubVQA
    from glimpse_lightning.data.tables.table import Table
    from glimpse_lightning.data.visual_cot import VisualCoTBenchmark, VisualCoTTrain
    from glimpse_lightning.engine.overlay import overlay
    from glimpse_lightning.evaluation.module import EvaluationModule
    from glimpse_lightning.evaluation.suite import SuiteData, SuiteModule
    from glimpse_lightning.evaluation.vlm_module import VLMModule
    from glimpse_lightning.model.dialogue import Dialogue
    from glimpse_lightning.model.pruned_vlm import PrunedVLM
    from glimpse_lightning.model.resolution import ResolutionCut
    from glimpse_lightning.model.storage import load_pruner, save_pruner
    from glimpse_lightning.objectives.base import Objective
    from glimpse_lightning.policies.base import Policy
    from glimpse_lightning.policies.from_function import from_function
    from glimpse_lightning.pruner import Pruner, PruneStage
    from glimpse_lightning.reducers.base import Reducer
    from glimpse_lightning.runtime.errors import GlimpseError
    from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer
    from glimpse_lightning.training.module import PruningModule

# Module of each public name. Imported on first access, so that `--help` does not wait for transformers.
_HOMES = {
    "AttentionProbe": "scorers.base",
    "Backbone": "backbones.base",
    "Batch": "data.batch",
    "DenseGlyphVQA": "data.dense_glyph_vqa",
    "Dialogue": "model.dialogue",
    "EvaluationModule": "evaluation.module",
    "GlimpseError": "runtime.errors",
    "GlyphVQA": "data.glyph_vqa",
    "HubVQA": "data.tables.hub",
    "JSONL": "data.jsonl",
    "LoRA": "backbones.lora",
    "ModelFacts": "core.visual_tokens",
    "Objective": "objectives.base",
    "Policy": "policies.base",
    "PruneStage": "pruner",
    "PrunedVLM": "model.pruned_vlm",
    "Pruner": "pruner",
    "PruningModule": "training.module",
    "Reducer": "reducers.base",
    "Requires": "scorers.base",
    "ResolutionCut": "model.resolution",
    "Sample": "data.sample",
    "Scorer": "scorers.base",
    "SuiteData": "evaluation.suite",
    "SuiteModule": "evaluation.suite",
    "Table": "data.tables.table",
    "VLMModule": "evaluation.vlm_module",
    "VQAData": "data.datamodule",
    "VisionAttention": "core.visual_tokens",
    "VisionKeys": "core.visual_tokens",
    "VisionPixels": "core.visual_tokens",
    "VisualCoTBenchmark": "data.visual_cot",
    "VisualCoTTrain": "data.visual_cot",
    "VisualTokens": "core.visual_tokens",
    "from_function": "policies.from_function",
    "load_backbone": "backbones",
    "load_pruner": "model.storage",
    "overlay": "engine.overlay",
    "save_pruner": "model.storage",
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

renames.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES or name in renames.MOVED:
        value = import_module(f"{__name__}.{name}")
    else:
        raise no_attribute(__name__, name, __all__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
