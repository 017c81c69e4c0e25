"""Objectives: losses that training minimises. One file and one import line each.

Examples:
    >>> import glimpse_lightning as gl
    >>> stage = gl.PruneStage(after_layer=3, scorer=gl.scorers.VisionSelector(), policy=gl.policies.Threshold())
    >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    >>> batch = model.backbone.collate([gl.GlyphVQA("train")[0]])
    >>> sorted(gl.objectives.KL(retention=0.1).step(model, batch).logs)
    ['budget', 'hard_retention', 'kl', 'retention', 'soft_hard_gap', 'target']
"""

from glimpse_lightning.objectives.attribution import Attribution
from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.objectives.differentiable_top_k import DifferentiableTopK
from glimpse_lightning.objectives.grpo import GRPO
from glimpse_lightning.objectives.kl import KL
from glimpse_lightning.objectives.mask import Mask
from glimpse_lightning.objectives.supervised import Supervised
from glimpse_lightning.runtime.errors import suggest_names

__all__ = ["GRPO", "KL", "Attribution", "DifferentiableTopK", "Mask", "Objective", "StepResult", "Supervised"]

suggest_names(__name__)
