"""A pruner: its stages, its files, and its place on the Hub."""

from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage

__all__ = ["PruneStage", "Pruner"]
