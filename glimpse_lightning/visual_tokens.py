"""Public names of :mod:`glimpse_lightning.core.visual_tokens`, for plug-ins."""

from glimpse_lightning.core.visual_tokens import (
    ModelFacts,
    VisionAttention,
    VisionKeys,
    VisionTap,
    VisualTokens,
)

__all__ = ["ModelFacts", "VisionAttention", "VisionKeys", "VisionTap", "VisualTokens"]
