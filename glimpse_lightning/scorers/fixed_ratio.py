"""A baseline that ignores the content: tokens spread evenly over the image."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.segments import rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.scorers.base import Scorer

BITS = 24  # integers up to 2**24 are exact in fp32; no sample has that many tokens


class FixedRatio(Scorer):
    """**Order only**: the n best tokens are spread evenly over each sample's tokens, for every n.

    Tokens are walked in Z-order within each image and visited in the order of the van der Corput sequence: first the
    start, then the middle, then the quarters, ... On a square grid of a power of two this is the pattern of ordered
    dithering. The scores ignore the content, so a scorer is useful only if it beats this baseline.
    """

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Scores ``[V]`` in (-1, 0], distinct within a sample."""
        group, samples = tokens.sample, tokens.num_samples
        t, row, column = tokens.position.unbind(-1)
        walk = (tokens.item << 48) | (t << 32) | (_spread_bits(row) << 1) | _spread_bits(column)
        index = rank_in_group(-walk, group, samples)
        count = segment_count(group, samples)[group]
        # Token i of n owns the interval [i/n, (i+1)/n); with 2**bits >= n points at least one, at most two, lie in it.
        bits = _bit_length(count - 1)
        points = torch.ones_like(bits) << bits
        first = (index * points + count - 1) // count
        second = torch.where((first + 1) * count < (index + 1) * points, first + 1, first)
        visit = torch.minimum(_reverse_bits(first, bits), _reverse_bits(second, bits))
        return -visit.float() / points.float()


def _spread_bits(x: Tensor) -> Tensor:
    """Insert a zero before each of the lower 15 bits."""
    out = torch.zeros_like(x)
    for bit in range(15):
        out = out | (((x >> bit) & 1) << (2 * bit))
    return out


def _bit_length(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for bit in range(BITS):
        out = out + ((x >> bit) > 0)
    return out


def _reverse_bits(x: Tensor, bits: Tensor) -> Tensor:
    """Reverse the lowest ``bits`` bits of each element."""
    out = torch.zeros_like(x)
    for bit in range(BITS):
        out = out | (((x >> bit) & 1) << (BITS - 1 - bit))
    return out >> (BITS - bits)
