"""A backbone together with its pruner: generation, loading and saving, sharding."""

from glimpse_lightning.model.pruned_vlm import PrunedVLM

__all__ = ["PrunedVLM"]
