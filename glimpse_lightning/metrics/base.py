"""Base class of all metrics."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric


class BaseMetric(Metric):
    """A metric whose figures can be plotted and do not depend on the split into ranks and batches."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw ``val`` (default: the result of :meth:`compute`; a list of results: a curve) on ``ax``; needs
        matplotlib.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)
