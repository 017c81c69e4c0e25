"""Reducers: how dropped tokens are removed or merged. One file and one import line each."""

from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.reducers.merge_nearest import MergeNearest
from glimpse_lightning.reducers.merge_neighbours import MergeNeighbours
from glimpse_lightning.reducers.pool_cells import PoolCells

__all__ = ["Drop", "MergeNearest", "MergeNeighbours", "PoolCells", "Reducer"]
