"""Public names of :mod:`glimpse_lightning.core.visual_tokens`, for plug-ins."""

from glimpse_lightning.core.visual_tokens import (
    ModelFacts,
    VisionAttention,
    VisionKeys,
    VisionPixels,
    VisionTap,
    VisualTokens,
)

__all__ = ["ModelFacts", "VisionAttention", "VisionKeys", "VisionPixels", "VisionTap", "VisualTokens"]
