"""An image-only processor from stock parts, for machines without torchvision.

``Qwen2_5_VLProcessor`` cannot be constructed without torchvision, because it requires a video processor. Its tokenizer,
PIL image processor and chat template work without torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from glimpse_lightning.backbones.collate import first_copies
from glimpse_lightning.backbones.support import families
from glimpse_lightning.runtime.errors import GlimpseError

EXTRAS = {"torchvision": "video", "num2words": "video", "accelerate": "quantization", "bitsandbytes": "quantization"}
"""Extras of this package that install packages which transformers requires."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
"""Files of which a folder with a tokenizer has at least one."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")


class ImageOnlyProcessor(ProcessorMixin):
    """Tokenizer + PIL image processor + chat template of a Qwen-VL model, called as the stock processor is.

    Args:
        tokenizer: stock tokenizer, with its chat template.
        image_processor: a PIL image processor that returns ``pixel_values`` and ``image_grid_thw``.
        image_token: placeholder of one visual token.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, image_token: str = "<|image_pad|>") -> None:
        # The mixin's own needs all parts of a stock processor; chat templates and decoding need only these.
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat_template = tokenizer.chat_template
        self.image_token = image_token

    def save_pretrained(self, folder: Path) -> None:
        """Write the parts, from which ``load_processor`` restores the processor."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image | Sequence[Image.Image]] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Token ids and pixel values of prompts whose image placeholders match ``images`` (flat or nested), in order.

        Raises:
            GlimpseError: for videos and audio, or if placeholders and images differ in number.
        """
        if audio is not None:
            raise GlimpseError("Expected text and images, but got `audio`, which Qwen-VL models do not hear.")
        if videos is not None:
            raise GlimpseError(f"Video needs torchvision: `{install_command('video')}`.")
        prompts = [text] if isinstance(text, str) else list(text)
        nested = [images] if isinstance(images, Image.Image) else list(images or [])
        pictures = [one for some in nested for one in ([some] if isinstance(some, Image.Image) else some)]
        features: dict[str, Any] = {}
        sizes: list[int] = []
        if pictures:
            features = self._features(pictures)
            merge = self.image_processor.merge_size**2
            sizes = (features["image_grid_thw"].prod(-1) // merge).tolist()
        places = sum(prompt.count(self.image_token) for prompt in prompts)
        if places != len(sizes):
            raise GlimpseError(f"Expected one {self.image_token} per image, but got {places} for {len(sizes)} images.")
        remaining = iter(sizes)
        pattern = re.escape(self.image_token)
        expanded = [re.sub(pattern, lambda _: self.image_token * next(remaining), prompt) for prompt in prompts]
        return BatchFeature({**self.tokenizer(expanded, **kwargs), **features})

    def _features(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """``pixel_values`` and ``image_grid_thw``; a repeated picture is processed once."""
        first = first_copies(pictures)
        distinct = sorted(set(first))
        features = dict(self.image_processor(images=[pictures[number] for number in distinct], return_tensors="pt"))
        if len(distinct) == len(pictures):
            return features
        which = [distinct.index(number) for number in first]
        patches = features["pixel_values"].split(features["image_grid_thw"].prod(-1).tolist())
        pixels = torch.cat([patches[number] for number in which])
        return {**features, "pixel_values": pixels, "image_grid_thw": features["image_grid_thw"][which]}


def load_processor(name: str, **kwargs: Any) -> Any:
    """Stock ``AutoProcessor``, or ``ImageOnlyProcessor`` if torchvision is missing and the family supports it.

    ``None`` for a folder that holds a model alone, which takes ready tensor batches only.

    Raises:
        GlimpseError: if the stock processor needs a package that is missing, or that does not fit torch.
    """
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in PROCESSOR_FILES):
        return None
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        raise GlimpseError(
            f"{name} holds a processor, but no tokenizer: put the checkpoint's tokenizer.json (or vocab.json and "
            "merges.txt, or tokenizer.model) and tokenizer_config.json into it."
        )
    model_type = AutoConfig.from_pretrained(name, **kwargs).model_type
    if is_torchvision_available() or not _has_stand_in(model_type):
        try:
            return AutoProcessor.from_pretrained(name, **kwargs)
        except (ImportError, ValueError, RuntimeError) as error:  # RuntimeError: "torchvision::nms does not exist"
            command = installing(error)
            if not command and not isinstance(error, ImportError):
                raise
            reason = str(error).strip().splitlines()[0].partition(" Check out")[0]
            raise GlimpseError(
                f"The processor of {name!r} ({model_type}) needs a package that is missing, or not made for torch "
                f"{torch.__version__}: {reason} "
                f"Install it{command and f': `{command}`'}. Without a processor, `gl.wrap_backbone(model)` takes ready "
                "tensor batches."
            ) from error
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    template = ProcessorMixin.get_processor_dict(name, **kwargs)[0].get("chat_template")
    tokenizer.chat_template = template or tokenizer.chat_template  # a processor's own overrides its tokenizer's
    return ImageOnlyProcessor(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(name, **kwargs))


def _has_stand_in(model_type: str) -> bool:
    """Whether the adapter of a model type supports :class:`ImageOnlyProcessor`."""
    architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    family = families().get(architecture) if isinstance(architecture, str) else None
    return family is not None and family.image_only_processor


def installing(error: Exception) -> str:
    """The command that installs the package reported as missing by an error of transformers, with the torch that is
    there; empty if no extra of this package has it.
    """
    found = (extra for package, extra in EXTRAS.items() if package in str(error).lower())
    return next(map(install_command, found), "")


def install_command(extra: str) -> str:
    """The command that installs an extra of this package. It names this build of torch, as pip would otherwise take the
    newest torchvision, and another torch along with it.
    """
    release, _, build = str(torch.__version__).partition("+")
    _, minor, patch = (*release.split("."), "0", "0")[:3]
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if build else ""
    vision = f" torchvision==0.{int(minor) + 15}.{patch}+{build}" if build and extra == "video" else ""  # as it counts
    return f"pip install 'glimpse_lightning[{extra}]' torch=={torch.__version__}{vision}{index}"
