"""Adapters over unmodified Hugging Face models: one family, one file, one import."""

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.gemma3 import Gemma3Backbone
from glimpse_lightning.backbones.idefics3 import Idefics3Backbone
from glimpse_lightning.backbones.internvl import InternVLBackbone
from glimpse_lightning.backbones.llava import LlavaBackbone
from glimpse_lightning.backbones.llava_next import LlavaNextBackbone
from glimpse_lightning.backbones.llava_onevision import LlavaOnevisionBackbone
from glimpse_lightning.backbones.load import load_backbone, wrap_backbone
from glimpse_lightning.backbones.qwen2_5_vl import Qwen25VLBackbone
from glimpse_lightning.backbones.qwen2_vl import Qwen2VLBackbone
from glimpse_lightning.backbones.qwen3_vl import Qwen3VLBackbone
from glimpse_lightning.runtime.errors import suggest_names

__all__ = [
    "Backbone",
    "Gemma3Backbone",
    "Idefics3Backbone",
    "InternVLBackbone",
    "LlavaBackbone",
    "LlavaNextBackbone",
    "LlavaOnevisionBackbone",
    "Qwen2VLBackbone",
    "Qwen3VLBackbone",
    "Qwen25VLBackbone",
    "load_backbone",
    "wrap_backbone",
]

suggest_names(__name__)
