from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_lightning.ablation.cells import Cell
from glimpse_lightning.ablation.report import markdown
from glimpse_lightning.ablation.rows import read_rows
from glimpse_lightning.ablation.runs import CellFolders
from glimpse_lightning.ablation.statistics import holm, paired_difference, pareto_front, sign_flip_p
from glimpse_lightning.evaluation.intervals import bootstrap


def test_bootstrap_of_two_answers_by_hand() -> None:
    """Resamples of {0, 1}: mean 0 in a quarter of them, 1/2 in a half, 1 in a quarter."""
    estimate = bootstrap([0.0, 1.0])
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.5, 0.0, 1.0, 2)
    narrow = bootstrap([0.0, 1.0], level=0.4)  # quantiles 0.3 and 0.7 both fall into the half
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_is_that_of_all_resamples() -> None:
    """Five answers have 5^5 equally likely resamples: their exact quantiles, by enumeration."""
    values = [0.0, 0.0, 1.0, 1.0, 1.0]
    means = [sum(resample) / 5 for resample in product(values, repeat=5)]
    low, high = np.quantile(means, [0.025, 0.975])
    estimate = bootstrap(values)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert (low, high) == (pytest.approx(0.2), pytest.approx(1.0))


def test_bootstrap_of_many_answers_is_normal() -> None:
    values = [1.0] * 400 + [0.0] * 100
    estimate = bootstrap(values)
    spread = 1.96 * (0.8 * 0.2 / 500) ** 0.5
    assert estimate.low == pytest.approx(0.8 - spread, abs=0.004)
    assert estimate.high == pytest.approx(0.8 + spread, abs=0.004)
    assert bootstrap(values) == estimate  # on every machine, every time
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_differences_are_paired_by_question() -> None:
    ours, theirs = {"a": 1.0, "b": 0.0, "c": 1.0, "x": 0.0}, {"c": 0.0, "b": 1.0, "a": 0.0, "y": 1.0}
    estimate = paired_difference(ours, theirs)
    assert estimate is not None
    assert (estimate.value, estimate.n) == (pytest.approx(1 / 3), 3)
    same = paired_difference(ours, ours)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)  # unpaired, this interval would be wide
    assert paired_difference(ours, {"z": 1.0}) is None


def test_paired_differences_of_one_image_count_together() -> None:
    names = [f"{page}/{number}" for page in range(9) for number in range(20)]
    theirs = {name: float(name[0] < "6") for name in names}
    ours = {name: float(name[0] < "4") for name in names}
    images = {name: name[0] for name in names}
    together, apart = paired_difference(ours, theirs, images), paired_difference(ours, theirs)
    pages = [f"{page}/0" for page in range(9)]
    nine = paired_difference({name: ours[name] for name in pages}, {name: theirs[name] for name in pages})
    assert together is not None and apart is not None and nine is not None
    assert (together.low, together.high) == (pytest.approx(nine.low), pytest.approx(nine.high))
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_p_value_is_that_of_all_signs() -> None:
    """Four images, two of them with two questions: the mean under each of the 16 signs, by enumeration."""
    differences, images = [1.0, 0.5, -0.5, 0.25, 1.0, 0.0], ["a", "a", "b", "c", "d", "d"]
    sums = [1.5, -0.5, 0.25, 1.0]
    means = [
        abs(sum(sign * each for sign, each in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=4)
    ]
    exact = sum(mean >= abs(sum(sums)) for mean in means) / 16
    assert sign_flip_p(differences, images) == pytest.approx(exact, abs=0.004)
    assert sign_flip_p([-each for each in differences], images) == sign_flip_p(differences, images)


def test_p_values_at_the_ends() -> None:
    assert sign_flip_p([0.0] * 9) == 1.0
    assert sign_flip_p([1.0] * 50, ["one"] * 50) == 1.0  # one image says nothing about others
    assert sign_flip_p([1.0] * 5) == pytest.approx(2 / 32, abs=0.003)
    assert sign_flip_p([0.1, 0.2, -0.3] * 4) == 1.0  # sums that differ by rounding only
    assert 0 < sign_flip_p([1.0] * 60) <= 1e-5  # the least with 99,999 draws


def of_equal_runs(rng: np.random.Generator, images: int, questions: int) -> list[float]:
    """Differences of two equally good runs: on each image one of them, drawn by chance, errs more often."""
    errs = rng.choice([0.0, 0.5], (images, 2))
    right = rng.random((images, questions, 2)) > errs[:, None]
    return (right[..., 0].astype(float) - right[..., 1]).ravel().tolist()


def test_equal_runs_are_told_apart_in_one_case_of_twenty() -> None:
    rng = np.random.default_rng(0)
    drawn = [of_equal_runs(rng, 30, 10) for _ in range(600)]
    names = [str(place // 10) for place in range(300)]
    clustered = np.mean([sign_flip_p(each, names, 999) <= 0.05 for each in drawn])
    apart = np.mean([sign_flip_p(each, (), 999) <= 0.05 for each in drawn])
    assert clustered == pytest.approx(0.05, abs=0.025)  # three standard errors of 600 cases
    assert apart > 0.2  # questions about one image do not count as independent ones


def test_p_values_agree_with_intervals() -> None:
    """Runs that differ: the p-value is below 0.05 about where the interval is on one side of 0."""
    rng = np.random.default_rng(1)
    names = [str(place // 4) for place in range(400)]
    same = []
    for _ in range(200):
        ours = {str(n): each for n, each in enumerate((rng.random(400) < 0.9).astype(float))}
        theirs = {str(n): each for n, each in enumerate((rng.random(400) < 0.86).astype(float))}
        estimate = paired_difference(ours, theirs, dict(zip(ours, names, strict=True)))
        assert estimate is not None
        p = sign_flip_p([ours[name] - theirs[name] for name in ours], names, 999)
        same.append((p <= 0.05) == (estimate.low > 0 or estimate.high < 0))
    assert np.mean(same) > 0.93


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_rows_read_which_image_a_question_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine pages of 20 questions that go right or wrong together; ``image`` is missing in what older versions wrote."""
    lines = [
        {"id": f"{page}/{number}", "family": "", "score": float(page < 6), "image": f"page {page}"}
        for page in range(9)
        for number in range(20)
    ]
    older = [{name: value for name, value in line.items() if name != "image"} for line in lines]
    few = lines[::20]
    for name, written in {"new": lines, "old": older, "few": few}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"n": len(written), "metrics": {}, "families": {}}))
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    monkeypatch.setattr(CellFolders, "finished", lambda self, cell: tmp_path / cell.name)
    cells = [Cell(name, "test", {}, {}, {}) for name in ("new", "old", "few")]
    rows = read_rows(cells, CellFolders(tmp_path))
    new, old, nine = (row.accuracy() for row in rows)
    assert new is not None and old is not None and nine is not None
    assert (new.n, new.low, new.high) == (180, pytest.approx(nine.low), pytest.approx(nine.high))
    assert new.high - new.low > 3 * (old.high - old.low)
    assert "(9 images)" in markdown(rows[:1], "x")
    assert "(no known images)" in markdown(rows[1:2], "x")


def test_pareto_front_by_hand() -> None:
    points = [(0.1, 0.5), (0.2, 0.4), (0.2, 0.7), (0.3, 0.7), (1.0, 0.9), (0.1, 0.2)]
    assert pareto_front(points) == [0, 2, 4]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beaten(i: int) -> bool:
        return any(
            q != points[i] and q[0] <= points[i][0] and q[1] >= points[i][1] for q in points
        )  # fmt: skip

    assert sorted(pareto_front(points)) == [i for i in range(len(points)) if not beaten(i)]
