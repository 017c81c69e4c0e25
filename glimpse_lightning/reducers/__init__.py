"""Reducers: how dropped tokens are removed or merged. One file and one import line each.

Examples:
    >>> import glimpse_lightning as gl
    >>> stage = gl.PruneStage(
    ...     after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.TopK(16),
    ...     reducer=gl.reducers.MergeNearest(),
    ... )
    >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
    >>> int(model.prefill(**batch.inputs).keep[0].sum())
    16
"""

from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.reducers.merge_nearest import MergeNearest
from glimpse_lightning.reducers.merge_neighbours import MergeNeighbours
from glimpse_lightning.reducers.pool_cells import PoolCells
from glimpse_lightning.runtime.errors import suggest_names

__all__ = ["Drop", "MergeNearest", "MergeNeighbours", "PoolCells", "Reducer"]

suggest_names(__name__)
