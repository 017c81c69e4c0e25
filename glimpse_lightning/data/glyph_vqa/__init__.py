"""GlyphVQA: procedural questions about pictures of shapes and words."""

from glimpse_lightning.data.glyph_vqa.dataset import GlyphVQA

__all__ = ["GlyphVQA"]
