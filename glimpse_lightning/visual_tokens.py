"""The public face of :mod:`glimpse_lightning.core.visual_tokens`, which plug-ins import."""

from glimpse_lightning.core.visual_tokens import (
    ModelFacts,
    VisionAttention,
    VisionKeys,
    VisionTap,
    VisualTokens,
)

__all__ = ["ModelFacts", "VisionAttention", "VisionKeys", "VisionTap", "VisualTokens"]
