"""Adapters over unmodified Hugging Face models: one family, one file, one import."""

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.load import load_backbone, wrap_backbone
from glimpse_lightning.backbones.qwen2_5_vl import Qwen25VLBackbone

__all__ = ["Backbone", "Qwen25VLBackbone", "load_backbone", "wrap_backbone"]
