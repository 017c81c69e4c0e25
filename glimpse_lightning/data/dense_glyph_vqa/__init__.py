"""DenseGlyphVQA: pages full of tiles, every one of which can be asked about."""

from glimpse_lightning.data.dense_glyph_vqa.dataset import DenseGlyphVQA

__all__ = ["DenseGlyphVQA"]
