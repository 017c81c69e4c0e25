"""Objectives: losses that training minimises. One file and one import line each."""

from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.objectives.differentiable_top_k import DifferentiableTopK
from glimpse_lightning.objectives.grpo import GRPO
from glimpse_lightning.objectives.kl import KL
from glimpse_lightning.objectives.mask import Mask
from glimpse_lightning.objectives.supervised import Supervised

__all__ = ["GRPO", "KL", "DifferentiableTopK", "Mask", "Objective", "StepResult", "Supervised"]
