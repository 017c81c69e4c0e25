"""What all metrics share."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric


class BaseMetric(Metric):
    """A metric of figures that can be plotted, and that gives ranks and batches no say in the result."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw ``val`` (default: what :meth:`compute` gives; a list of it: a curve) on ``ax``; needs matplotlib.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)
