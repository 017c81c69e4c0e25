"""Policies: from scores to a keep mask. One file and one import line each.

Examples:
    >>> import glimpse_lightning as gl
    >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.TopK(16))
    >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
    >>> int(model.prefill(**batch.inputs).keep[0].sum())
    16
"""

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.bipartite_matching import BipartiteMatching
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.coverage import Coverage
from glimpse_lightning.policies.crop_ratio import CropRatio
from glimpse_lightning.policies.dart import DART
from glimpse_lightning.policies.dominant_contextual import DominantContextual
from glimpse_lightning.policies.dpp import DPP
from glimpse_lightning.policies.from_function import FromFunction
from glimpse_lightning.policies.grid_cells import GridCells
from glimpse_lightning.policies.hi_prune import HiPrune
from glimpse_lightning.policies.keep_ratio import KeepRatio
from glimpse_lightning.policies.local_global import LocalGlobal
from glimpse_lightning.policies.logistic_ratio import LogisticRatio
from glimpse_lightning.policies.max_min import MaxMin
from glimpse_lightning.policies.mmr import MMR
from glimpse_lightning.policies.outliers import Outliers
from glimpse_lightning.policies.pixel_prune import PixelPrune
from glimpse_lightning.policies.recycled import Recycled
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.policies.top_k import TopK
from glimpse_lightning.policies.top_p import TopP
from glimpse_lightning.policies.vis_pruner import VisPruner
from glimpse_lightning.runtime.errors import suggest_names

__all__ = [
    "DART", "DPP", "MMR", "BipartiteMatching", "Budget", "Budgeted", "Coverage", "CropRatio", "DominantContextual",
    "FromFunction", "GridCells", "HiPrune", "KeepRatio", "LocalGlobal", "LogisticRatio", "MaxMin", "Outliers",
    "PixelPrune", "Policy", "Recycled", "Threshold", "TopK", "TopP", "VisPruner",
]  # fmt: skip

suggest_names(__name__)
