"""Names of many lines in a plot."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_lightning.ablation.labels import spread
from glimpse_lightning.ablation.plots import pareto_figure, write_plots
from glimpse_lightning.evaluation.intervals import Estimate

pytest.importorskip("matplotlib", reason="plots need the extra `plots`")
BUDGETS = (0.05, 0.11, 0.22, 0.33)


def row(method: str, cost: float, accuracy: float) -> Any:
    estimate = Estimate(accuracy, accuracy - 0.02, accuracy + 0.02, 500)
    cell = SimpleNamespace(reference=method == "method_0")
    return SimpleNamespace(method=method, figure=lambda name: cost, accuracy=lambda: estimate, cell=cell)


def rows(methods: int) -> list[Any]:
    """Methods that differ at the least budget and hardly at the largest; each tenth has one cell."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(methods):
        rise = np.sort(rng.uniform(0.1, 0.98, 4)) ** 0.3
        costs = BUDGETS if number % 10 else BUDGETS[number // 10 % 4 :][:1]
        found += [row(f"method_{number}", cost, float(value)) for cost, value in zip(costs, rise, strict=False)]
    return found


def boxes(figure: Any) -> dict[str, Any]:
    from matplotlib.text import Text

    figure.canvas.draw()
    return {text.get_text(): Text.get_window_extent(text) for text in figure.axes[0].texts}


@pytest.mark.parametrize("methods", [11, 30, 80])
def test_names_of_many_methods_do_not_overlap(methods: int) -> None:
    figure = pareto_figure(rows(methods), "kv_retention")
    found = boxes(figure)
    assert {*found} == {f"method_{number}" for number in range(methods)}
    assert not [pair for pair in combinations(found, 2) if found[pair[0]].overlaps(found[pair[1]])]
    for box in found.values():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1


def test_a_plot_is_the_same_each_time() -> None:
    first, second = (boxes(pareto_figure(rows(30), "kv_retention")) for _ in range(2))
    assert {name: box.extents.tolist() for name, box in first.items()} == {
        name: box.extents.tolist() for name, box in second.items()
    }


def test_a_few_methods_have_a_legend() -> None:
    figure = pareto_figure(rows(10), "kv_retention")
    assert not boxes(figure)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "method_9" in names and "front" in names


def test_nothing_is_drawn_of_methods_without_accuracy(tmp_path: Path) -> None:
    assert write_plots(rows(3), tmp_path, ["method_4"]) == []


def test_places_by_hand() -> None:
    assert spread([0.2, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.2, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0, 1.0], 0.2, 0, 1) == pytest.approx([0.0, 0.2, 1.0])
    assert spread([0.5] * 3, 0.9, 0, 1) == pytest.approx([0.0, 0.5, 1.0])  # as far apart as there is room
    assert spread([], 0.1, 0, 1) == []


@given(st.lists(st.floats(-0.5, 1.5), max_size=30), st.floats(0, 0.2))
def test_places_keep_their_order_their_distance_and_the_room(wanted: list[float], gap: float) -> None:
    places = spread(sorted(wanted), gap, 0, 1)
    least = min(gap, 1 / max(1, len(wanted) - 1))
    assert all(0 - 1e-9 <= place <= 1 + 1e-9 for place in places)
    assert all(above - below >= least - 1e-9 for below, above in pairwise(places))
