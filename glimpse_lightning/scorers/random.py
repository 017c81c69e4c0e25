"""Chance: the baseline that every scorer has to beat."""

from __future__ import annotations

from torch import Tensor

from glimpse_lightning.core.token_places import index_in_sample
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.scorers.base import Scorer


class Random(Scorer):
    """**Order only**: uniform in [0, 1), a hash of (seed, the sample's key, the token's index in its sample).

    A sample's draw therefore depends on neither batch mates, order of samples, device nor earlier stages.

    Args:
        seed: seed of the draw, independent of the run's seed (``seed_everything``), so that this baseline is the same
            in all runs.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Scores ``[V]``."""
        key = _mix(tokens.key.long() ^ _signed(self.seed * 0x9E3779B97F4A7C15))
        bits = _mix(key[tokens.sample] + index_in_sample(tokens) * _signed(0xD1342543DE82EF95))
        return ((bits >> 40) & 0xFFFFFF).float() / 2**24


def _signed(value: int) -> int:
    """The lowest 64 bits of ``value`` as a signed integer, the range of torch's int64."""
    return (value + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64, whose products wrap around."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> by) & (2 ** (64 - by) - 1)
