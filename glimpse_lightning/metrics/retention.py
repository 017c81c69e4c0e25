"""Share of visual tokens that are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.metrics.rows import RowMetric


class Retention(RowMetric):
    """Share of visual tokens kept: its mean over samples, and its distribution.

    A sample's share is kept / total over all its items, total counted before any pruning. Samples without visual tokens
    do not count. One number per sample is stored, so quantiles are exact, also on several ranks.

    Args:
        quantiles: quantiles of the distribution to report, each in [0, 1].
        families: question families whose means are reported as well.
    """

    higher_is_better = False
    columns = {"shares": torch.float64, "family": torch.int64}

    def __init__(
        self, quantiles: Sequence[float] = (0.1, 0.5, 0.9), families: Sequence[str] = (), **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        for quantile in quantiles:
            if not 0 <= quantile <= 1:
                raise ValueError(f"Expected argument `quantiles` to be fractions in [0, 1], but got {quantile}.")
        self.quantiles = tuple(quantiles)
        self.families = tuple(families)

    def update(self, kept: Tensor, total: Tensor, families: Sequence[str] = ()) -> None:
        """Add samples: kept tokens ``[S]``, tokens before pruning ``[S]`` and, optionally, the family of each."""
        if kept.shape != total.shape or (families and len(families) != len(kept)):
            raise ValueError(
                f"Expected `kept`, `total` and `families` to have one entry per sample, but got {tuple(kept.shape)}, "
                f"{tuple(total.shape)} and {len(families)}."
            )
        known = {name: index for index, name in enumerate(self.families)}
        family = torch.tensor([known.get(name, -1) for name in families] or [-1] * len(kept), device=kept.device)
        seen = total > 0
        self.add_rows(shares=kept[seen].double() / total[seen].double(), family=family[seen])

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``p<quantile in %>`` for each quantile and ``<family>`` means; NaN without samples."""
        shares, order = self.column("shares").sort()  # a sum does not depend on the order of a sorted list
        family = self.column("family")[order]
        out = {"mean": shares.mean()}
        for quantile in self.quantiles:
            nan = shares.new_tensor(torch.nan)
            out[f"p{100 * quantile:g}"] = shares.quantile(quantile) if len(shares) else nan
        out |= {name: shares[family == index].mean() for index, name in enumerate(self.families)}
        return {name: value.float() for name, value in out.items()}

    def histogram(self, bins: int = 20) -> Tensor:
        """Samples per bin ``[bins]`` of [0, 1]; a share of 1 falls into the last bin."""
        shares = self.column("shares")
        return torch.bincount((shares * bins).long().clamp(max=bins - 1), minlength=bins)
