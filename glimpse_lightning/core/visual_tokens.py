"""VisualTokens: the packed view of a batch's visual tokens that scorers, policies and reducers see.

Shape suffixes used in the package: ``V`` visual tokens of the whole batch, ``I`` visual items (images, video clips),
``S`` samples, ``D`` decoder width, ``H`` decoder heads, ``T`` text tokens.

Nothing here has a batch or a padding axis: tokens of all samples are packed one after another, sample by sample and
item by item. A component that sees only this cannot depend on batch mates or on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from glimpse_lightning.core.segments import repeated_segments
from glimpse_lightning.runtime.errors import GlimpseError

LOG_GATES = "log_gates"
"""Key of ``VisualTokens.state`` for the log of the soft keep gates ``[V]`` of earlier stages, in training."""

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of the model that a pruner is attached to; all are known before any input.

    Attributes:
        num_layers, num_heads, num_kv_heads, head_dim, hidden_size, intermediate_size: sizes of the language decoder.
        rms_norm_eps: epsilon of the decoder's norms.
        vision_layers: number of blocks of the vision tower.
        vision_hidden_size: width of the states that the vision tower's blocks return.
        model_type: Hugging Face's ``config.model_type``.
        whole_image_blocks: blocks of the vision tower whose attention spans a whole image; empty: all of them. In the
            others it spans a window.

    Examples:
        >>> facts = gl.load_backbone("glimpse-tiny").facts
        >>> facts.num_layers, facts.hidden_size
        (8, 192)
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    rms_norm_eps: float
    vision_layers: int
    vision_hidden_size: int
    model_type: str = ""
    whole_image_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole_image_blocks", tuple(self.whole_image_blocks))  # a list in a saved pruner

    def layer_flops(self, tokens: Number) -> Number:
        """FLOPs (two per multiply-add) of one decoder layer over ``tokens`` tokens.

        ``C(n) = 4 n h (H d) + 4 n h (H_kv d) + 4 n^2 (H d) + 6 n h I``: query and output projections, keys and values,
        attention (not halved for causality), gated MLP. Source: upstream's ``cal_flops.py``, which writes ``h`` for
        ``H d``; some models (Qwen3) have ``H d != h``.
        """
        n, h = tokens, self.hidden_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return 4 * n * h * queries + 4 * n * h * keys + 4 * n * n * queries + 6 * n * h * self.intermediate_size


@dataclass(frozen=True)
class VisionAttention:
    """Attention that each token gets in a block of the vision tower: ``tokens.vision[self]`` is ``[V, 1]``, fp32.

    A token of several merged patches has their mean.

    Attributes:
        layer: block, counted from 0, or from -1 = the last.
        heads: ``"mean"``: weights averaged over heads; ``"joint"``: all heads as one (``softmax(q.k / sqrt(width))``).
        queries: ``"all"``: the sum of the weights that all tokens of its segment (image, or window) give it, a class
            token included, so that the average is 1. ``"class"``: the weight that the class token gives it; a tower
            without class token uses ``"all"``.

    Raises:
        GlimpseError: for other ``heads`` or ``queries``.

    Examples:
        >>> backbone = gl.load_backbone("glimpse-tiny")
        >>> batch, tap = backbone.collate([gl.GlyphVQA("test")[0]]), gl.VisionAttention(-1)
        >>> backbone.embed(batch.inputs, vision_layers=[tap]).vision[tap].shape
        torch.Size([256, 1])
    """

    layer: int
    heads: Literal["mean", "joint"] = "mean"
    queries: Literal["all", "class"] = "all"

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "joint") or self.queries not in ("all", "class"):
            raise GlimpseError(
                "Expected vision attention with `heads` 'mean' or 'joint' and `queries` 'all' or 'class', but got "
                f"{self.heads!r} and {self.queries!r}."
            )


@dataclass(frozen=True)
class VisionKeys:
    """Keys of a block of the vision tower, after any rotation: ``tokens.vision[self]`` ``[V, Dk]``.

    A token of several merged patches has their mean.

    Attributes:
        layer: block, counted from 0, or from -1 = the last.
        heads: ``"mean"``: averaged over heads, ``Dk`` the width of one (VisionZip, ToMe); ``"joint"``: all heads as
            one, side by side (PruMerge).

    Raises:
        GlimpseError: for other ``heads``.

    Examples:
        >>> backbone = gl.load_backbone("glimpse-tiny")
        >>> batch, tap = backbone.collate([gl.GlyphVQA("test")[0]]), gl.VisionKeys(-1)
        >>> backbone.embed(batch.inputs, vision_layers=[tap]).vision[tap].shape
        torch.Size([256, 32])
    """

    layer: int
    heads: Literal["mean", "joint"] = "mean"

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "joint"):
            raise GlimpseError(f"Expected vision keys with `heads` 'mean' or 'joint', but got {self.heads!r}.")


@dataclass(frozen=True)
class VisionPixels:
    """Pixels that a token covers, as the image processor hands them to the vision tower: ``tokens.vision[self]``
    ``[V, P]``, the colours of P / 3 pixels. Families whose tokens cover no whole rectangle of pixels refuse it.

    Examples:
        >>> backbone = gl.load_backbone("glimpse-tiny")
        >>> batch = backbone.collate([gl.GlyphVQA("test")[0]])
        >>> backbone.embed(batch.inputs, vision_layers=[gl.VisionPixels()]).vision[gl.VisionPixels()].shape
        torch.Size([256, 4704])
    """


BlockTap = int | VisionAttention | VisionKeys
"""A request to a block of the vision tower; a number is the output of that block, counted from 0."""
VisionTap = BlockTap | VisionPixels
"""A request to the vision tower, or for what it is given."""


@dataclass(frozen=True)
class Views:
    """The part of an image that each item shows; the item's grid covers its region evenly.

    Attributes:
        image: ``[I]`` number of the image (or video) that an item belongs to, ascending; tiles of one share it.
        region: ``[I, 4]`` float64 (x1, y1, x2, y2) relative to the image's width and height; beyond [0, 1] where the
            item shows padding; NaN where the region is not known.
    """

    image: Tensor
    region: Tensor

    @classmethod
    def whole(cls, images: int, device: torch.device | None = None) -> Views:
        """Views of ``images`` items, each of which shows a whole image."""
        region = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=device).repeat(images, 1)
        return cls(torch.arange(images, device=device), region)

    def to(self, device: torch.device) -> Views:
        """A copy on another device."""
        return Views(self.image.to(device), self.region.to(device))

    def within(self, samples: Sequence[int]) -> list[int]:
        """Number of each item's image within its sample, for items of ``samples``."""
        images = self.image.tolist()
        first = dict(reversed([*zip(samples, images, strict=True)]))
        return [image - first[sample] for sample, image in zip(samples, images, strict=True)]

    def repeated(self, items: Tensor, copies: int) -> Views:
        """Views in which every sample, with its ``items [B]`` items, is repeated ``copies`` times in a row."""
        index = repeated_segments(items, copies)
        image, lengths = self.image[index], items.repeat_interleave(copies)
        new = torch.ones_like(image, dtype=torch.bool)
        new[1:] = image[1:] != image[:-1]
        new[(lengths.cumsum(0) - lengths)[lengths > 0]] = True  # a copy's images are images of their own
        return Views(new.cumsum(0) - 1, self.region[index])


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of a batch as one prune stage sees them (those that earlier stages dropped are absent).

    Attributes:
        embeds: ``[V, D]`` states on entering the decoder.
        hidden: ``[V, D]`` states at the stage (equal to ``embeds`` before layer 0).
        item: ``[V]`` index of each token's item in ``grid``.
        sample: ``[V]`` index of the sample, in ``[0, S)``.
        grid: ``[I, 3]`` (t, h, w) of each item after merging, before any pruning.
        item_sample: ``[I]`` the sample that an item belongs to.
        position: ``[V, 3]`` (t, row, column) of each token in its item's grid.
        probes: captured attention, by the name of the scorer's probe: ``[V, layers * heads]``, layer-major.
        vision: requested states, keys or attention of vision blocks, by tap: ``[V, Dv]``.
        text: ``[T, D]`` question-token states at the stage, packed; ``None`` unless asked for.
        text_sample: ``[T]`` the sample of each text token; ``None`` unless any of their states are asked for.
        text_states: states ``[T, D]`` of the same tokens by the layer after which they are read, as asked for.
        questions: raw question of each sample; empty strings where unknown.
        boxes: per sample, evidence boxes of each of its images, or ``None``; empty where unknown. For oracles only.
        key: ``[S]`` a stable integer per sample, the seed of anything random.
        facts: sizes of the model.
        state: values that earlier stages pass to later ones.
        keys: ``[V, Hk * head_dim]`` decoder keys of the last layer before the stage; ``None`` unless asked for.
        text_keys: ``[T, Hk * head_dim]`` keys of the text tokens in that layer; ``None`` unless asked for.
        scores: ``[V]`` the stage's scores; for reducers.
        targets: ``[V]`` kept tokens that dropped ones may be merged into (``Policy.merge_targets``); for reducers.
        views: part of an image that each item shows; ``None`` = a whole image each.
        text_length: ``[S]`` tokens of each prompt that are not visual.
        layer_tokens: ``[S, K + 1]`` tokens of each prompt, text included, that each layer up to the stage ran on.

    Examples:
        >>> zeros = torch.zeros(4, dtype=torch.long)
        >>> places = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
        >>> tokens = gl.VisualTokens(  # one image of 2 x 2 tokens
        ...     embeds=torch.zeros(4, 192), hidden=torch.zeros(4, 192), item=zeros, sample=zeros, position=places,
        ...     grid=torch.tensor([[1, 2, 2]]), item_sample=zeros[:1], key=zeros[:1],
        ...     facts=gl.load_backbone("glimpse-tiny").facts,
        ... )
        >>> len(tokens.subset(tokens.position[:, 1] == 0))
        2
    """

    embeds: Tensor
    hidden: Tensor
    item: Tensor
    sample: Tensor
    grid: Tensor
    item_sample: Tensor
    position: Tensor
    key: Tensor
    facts: ModelFacts
    probes: Mapping[str, Tensor] = field(default_factory=dict)
    vision: Mapping[VisionTap, Tensor] = field(default_factory=dict)
    text: Tensor | None = None
    text_sample: Tensor | None = None
    text_states: Mapping[int, Tensor] = field(default_factory=dict)
    questions: tuple[str, ...] = ()
    boxes: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    keys: Tensor | None = None
    text_keys: Tensor | None = None
    scores: Tensor | None = None
    targets: Tensor | None = None
    views: Views | None = None
    text_length: Tensor | None = None
    layer_tokens: Tensor | None = None

    def __len__(self) -> int:
        return self.item.shape[0]

    @property
    def num_samples(self) -> int:
        return self.key.shape[0]

    @property
    def num_items(self) -> int:
        return self.grid.shape[0]

    def attention(self, tap: VisionAttention) -> Tensor:
        """Attention ``[V]``, fp32, that ``tap`` asks for.

        On hand-made tokens, as on those of a tower without class token, the tap with ``queries="all"`` is enough.

        Raises:
            KeyError: if no component asked for it.
        """
        found = tap if tap in self.vision else replace(tap, queries="all")
        return self.vision[found][:, 0].float()

    def groups(self, per: Literal["sample", "item"] = "sample") -> tuple[Tensor, Tensor]:
        """The budget groups.

        Returns:
            ``(group [V], total [groups])``: the group of each token, and the number of tokens in each group before any
            stage dropped one (the base of ratios).
        """
        size = self.grid.prod(-1)
        if per == "item":
            return self.item, size
        if per != "sample":
            raise ValueError(f"Expected `per` to be 'sample' or 'item', but got {per!r}.")
        total = torch.zeros(self.num_samples, dtype=size.dtype, device=size.device)
        return self.sample, total.index_add(0, self.item_sample, size)

    def subset(self, keep: Tensor) -> VisualTokens:
        """The tokens where the boolean mask ``keep [V]`` is true; numbers of items and samples do not change."""
        return replace(
            self,
            embeds=self.embeds[keep],
            hidden=self.hidden[keep],
            item=self.item[keep],
            sample=self.sample[keep],
            position=self.position[keep],
            probes={name: value[keep] for name, value in self.probes.items()},
            vision={layer: value[keep] for layer, value in self.vision.items()},
            keys=None if self.keys is None else self.keys[keep],
            scores=None if self.scores is None else self.scores[keep],
            targets=None if self.targets is None else self.targets[keep],
        )
