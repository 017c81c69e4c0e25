"""PruMerge's merging: every kept token takes up its neighbours, and one takes up all the rest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import Padding, segment_count, segment_max, segment_sum
from glimpse_lightning.core.visual_tokens import VisionKeys, VisualTokens
from glimpse_lightning.policies.checks import check_count
from glimpse_lightning.policies.scale import weights
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.merging import compress
from glimpse_lightning.scorers.base import Requires


class MergeNeighbours(Reducer):
    """``x_i + sum_j a_j x_j`` over the ``neighbours`` tokens ``j`` of the item whose keys are most like key ``i``.

    LLaVA-PruMerge (arXiv 2403.15388): neighbours may be kept or dropped tokens; ``a`` is the attention that the score
    is the logarithm of, so a class token's sums to less than 1 over the tokens of an item. Tokens that the policy keeps
    as merge targets only (``Outliers(extra: true)``) become ``sum_j a_j x_j`` over all tokens that are not kept
    otherwise; in an item where nothing else is kept they are as any other.

    Departures: where ``a`` sums to more than 1, as attention received does, it is divided by its sum; the states are
    those at the stage, PruMerge's in front of the projector.

    Args:
        neighbours: how many.
        key_layer: block of the vision tower whose keys are compared: a number from 0, or from -1 = the last, or a
            share of its depth.
    """

    layer_arguments = {"key_layer": "vision"}

    def __init__(self, neighbours: int = 32, key_layer: Layer = -1) -> None:
        check_count("neighbours", neighbours)
        self.neighbours = neighbours
        self.key_layer: int = checked("key_layer", key_layer)

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(VisionKeys(self.key_layer, "joint"),))

    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        if not bool(keep.any()):
            return hidden[keep]
        rest = torch.zeros_like(keep)
        if tokens.targets is not None:
            others = segment_count(tokens.item, tokens.num_items, keep & ~tokens.targets)
            rest = tokens.targets & (others > 0)[tokens.item]
        attention = self._attention(tokens)
        padding = Padding(tokens.item)
        weighted = padding.pad(attention[:, None] * hidden.float())
        keys = F.normalize(tokens.vision[VisionKeys(self.key_layer, "joint")].float(), dim=-1)
        chosen, index, valid = compress(padding, keys, keep)
        place = padding.pad(torch.arange(1, len(keep) + 1, device=keep.device)) - 1  # -1 in the gaps
        other = (place[:, None] >= 0) & (index[..., None] != place[:, None])
        near = (chosen @ padding.pad(keys).transpose(1, 2)).masked_fill(~other, -torch.inf)
        order = near.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)
        takes = (order < self.neighbours) & (near > -torch.inf)
        merged = hidden.float().index_add(0, index[valid], (takes.float() @ weighted)[valid])
        gone = ~keep | rest
        everything = torch.zeros(tokens.num_items, hidden.shape[-1], device=hidden.device)
        everything.index_add_(0, tokens.item[gone], attention[gone, None] * hidden[gone].float())
        merged = torch.where(rest[:, None], everything[tokens.item], merged)
        return merged.to(hidden.dtype)[keep]

    def _attention(self, tokens: VisualTokens) -> Tensor:
        item, items = tokens.item, tokens.num_items
        scores = torch.zeros(len(tokens), device=item.device) if tokens.scores is None else tokens.scores
        weight = weights(scores, "log", item, items)  # times exp(-top)
        top = segment_max(scores.float().nan_to_num(-torch.inf, neginf=-torch.inf), item, items)
        return weight / segment_sum(weight, item, items).maximum((-top).exp())[item]
