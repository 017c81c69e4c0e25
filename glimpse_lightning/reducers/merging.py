"""Which kept tokens are nearest to which: what merging reducers share.

Suffixes: ``G`` groups, ``L`` tokens of the longest group, ``K`` most targets of a group, ``D`` feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.segments import Padding

PAIRS = 2**24
"""Similarities that may be in memory at once (64 MiB in fp32), where one row of them fits."""


def nearest_target(features: Tensor, target: Tensor, group: Tensor, by: str) -> Tensor:
    """The target nearest to each token within its group; of equally near ones the earlier.

    Args:
        features: ``[V, D]``.
        target: ``[V]`` boolean.
        group: ``[V]``.
        by: ``"cosine"`` or ``"distance"`` (Euclidean).

    Returns:
        ``[V]`` packed index of a target; -1 where the group has none.
    """
    nearest = torch.full_like(group, -1)
    if not len(group) or not bool(target.any()):
        return nearest
    padding = Padding(group)
    rows, index, valid = compress(padding, features.detach().float(), target)
    all_rows = padding.pad(features.detach().float())
    if by == "cosine":
        rows, all_rows = F.normalize(rows, dim=-1), F.normalize(all_rows, dim=-1)
    groups, length, _ = all_rows.shape
    step = max(1, PAIRS // max(1, groups * rows.shape[1]))
    best = []
    for start in range(0, length, step):
        block = all_rows[:, start : start + step]
        if by == "cosine":
            near = block @ rows.transpose(1, 2)
        else:
            near = -torch.cdist(block, rows, compute_mode="donot_use_mm_for_euclid_dist")
        best.append(near.masked_fill(~valid[:, None], -torch.inf).argmax(-1))
    place = torch.cat(best, 1)
    found = index.gather(1, place).masked_fill(~valid.any(1, keepdim=True), -1)
    return padding.unpad(found)


def compress(padding: Padding, values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the ``chosen [V]`` tokens of each group: ``(values [G, K, D], packed index [G, K], valid [G, K])``."""
    mask = padding.pad(chosen)
    width = int(mask.sum(1).max())
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    each = torch.arange(len(mask), device=mask.device)[:, None]
    index = padding.pad(torch.arange(len(chosen), device=chosen.device))
    return padding.pad(values)[each, order], index[each, order], mask[each, order]
