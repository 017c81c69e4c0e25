"""Published methods in small, for models of a few layers."""

from __future__ import annotations

from typing import Any

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning import reducers as r
from glimpse_lightning import scorers as s

METHODS: dict[str, Any] = {
    "visionzip": lambda: [
        gl.PruneStage(-1, s.VisionRank(-1), p.DominantContextual(ratio=0.5), r.MergeNearest("add", key_layer=-1))
    ],
    "prumerge": lambda: [gl.PruneStage(-1, s.VisionRank(-1, "joint"), p.Outliers(0.5), r.MergeNeighbours(4))],
    "hiprune": lambda: [
        gl.PruneStage(-1, s.VisionRank(-1, queries="all"), p.HiPrune(ratio=0.6, anchors=0.9, object_layer=1))
    ],
    "sparsevlm": lambda: [
        gl.PruneStage(layer, s.TextRank(), p.Recycled(ratio=ratio, per_cluster=2), r.MergeNearest("mean", "distance"))
        for layer, ratio in ((0, 0.6), (2, 0.3))
    ],
    "dart": lambda: [gl.PruneStage(1, s.FixedRatio(), p.DART(ratio=0.6))],
    "cdpruner": lambda: [gl.PruneStage(-1, s.QuestionRelevance(), p.DPP(ratio=0.4))],
    "holov": lambda: [gl.PruneStage(-1, s.Holistic(-1, crops=2), p.CropRatio(ratio=0.4, crops=2))],
    "pooling": lambda: [gl.PruneStage(-1, s.FixedRatio(), p.GridCells(2), r.PoolCells(2))],
    "vtw": lambda: [gl.PruneStage(1, s.FixedRatio(), p.TopK(0))],
}
