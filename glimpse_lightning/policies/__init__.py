"""Policies: what turns scores into a keep mask. One file and one import line each."""

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.keep_ratio import KeepRatio
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.policies.top_k import TopK
from glimpse_lightning.policies.top_p import TopP

__all__ = ["KeepRatio", "Policy", "Threshold", "TopK", "TopP"]
