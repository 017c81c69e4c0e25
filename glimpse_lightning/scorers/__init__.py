"""Scorers: components that give every visual token a score. One file and one import line each.

Examples:
    >>> import glimpse_lightning as gl
    >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
    >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
    >>> model.prefill(**batch.inputs).scores[0].shape
    torch.Size([256])
"""

from glimpse_lightning.runtime.errors import suggest_names
from glimpse_lightning.scorers.attention_rank import AttentionRank
from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer
from glimpse_lightning.scorers.fixed_ratio import FixedRatio
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens
from glimpse_lightning.scorers.holistic import Holistic
from glimpse_lightning.scorers.late_interaction import LateInteraction
from glimpse_lightning.scorers.oracle import Oracle
from glimpse_lightning.scorers.question_relevance import QuestionRelevance
from glimpse_lightning.scorers.random import Random
from glimpse_lightning.scorers.text_rank import TextRank
from glimpse_lightning.scorers.upstream_options import UpstreamOptions
from glimpse_lightning.scorers.vip import VIP
from glimpse_lightning.scorers.vision_rank import VisionRank
from glimpse_lightning.scorers.vision_selector import VisionSelector
from glimpse_lightning.scorers.vision_text_rank import VisionTextRank

__all__ = [
    "VIP", "AttentionProbe", "AttentionRank", "FixedRatio", "GlimpseTokens", "Holistic", "LateInteraction", "Oracle",
    "QuestionRelevance", "Random", "Requires", "Scorer", "TextRank", "UpstreamOptions", "VisionRank", "VisionSelector",
    "VisionTextRank",
]  # fmt: skip

suggest_names(__name__)
