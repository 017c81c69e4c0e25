"""Random inputs of a method's code, and files of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import glimpse_lightning as gl
from glimpse_lightning.goldens.cases import read, recorded, write


def test_a_draw_on_which_a_rounding_decides_is_replaced() -> None:
    """The third of the function's answers for new inputs is one."""
    asked = 0

    def shaky(features: torch.Tensor, budget: int) -> range:
        nonlocal asked
        asked += 1
        return range(budget) if asked != 3 else range(1, budget + 1)

    (case,) = recorded(shaky, {}, grids=[(8, 8)])
    (other,) = recorded(lambda features, budget: range(budget), {}, grids=[(8, 8)])
    assert not torch.equal(case.inputs["features"], other.inputs["features"])
    assert sorted(case.kept) == sorted(other.kept)


def test_a_golden_file_without_cases_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(gl.GlimpseError, match="no cases"):
        read(tmp_path / "model.safetensors")


def test_cases_are_read_as_they_were_written(tmp_path: Path) -> None:
    cases = list(recorded(lambda features, grid, budget: range(budget), {}, seed=2, grids=[(4, 4), (3, 5)]))
    write(cases, tmp_path / "cases.safetensors", {"function": "mine"})
    again, metadata = read(tmp_path / "cases.safetensors")
    assert metadata["function"] == "mine" and [case.grid for case in again] == [(4, 4), (3, 5)]
    for one, other in zip(cases, again, strict=True):
        assert one.kept.keys() == other.kept.keys() and one.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
        assert all(torch.equal(one.kept[budget], other.kept[budget]) for budget in one.kept)
