"""A backbone with its pruner, whole: generation, loading and saving, sharding."""

from glimpse_lightning.model.pruned_vlm import PrunedVLM

__all__ = ["PrunedVLM"]
