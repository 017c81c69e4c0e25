"""Soft decisions become hard ones by the end of a training, or the training says that they did not."""

from __future__ import annotations

import pytest
import torch
from factories import visual_tokens

import glimpse_lightning as gl
from glimpse_lightning.objectives import KL, Mask
from glimpse_lightning.objectives.hardening import Ending, mean_retention, sharpening
from glimpse_lightning.objectives.kl import log_gates

HALF = gl.policies.Threshold()


def pruner(*policies: gl.policies.base.Policy) -> gl.Pruner:
    return gl.Pruner([gl.PruneStage(1, gl.scorers.Random(), policy) for policy in policies])


def ending(soft: float, hard: float, target: float | None, *policies: gl.policies.base.Policy) -> list[str]:
    found = Ending()
    for _ in range(3):
        found.add(pruner(*policies or (HALF,)), torch.tensor(soft), torch.tensor(hard), target)
    return found.remarks()


def test_the_factor_rises_geometrically_from_its_start() -> None:
    factors = [sharpening(progress, 0.6, 16.0) for progress in (0.0, 0.6, 0.66, 0.72, 0.78, 0.84, 1.0, 1.1)]
    assert factors == pytest.approx([1, 1, 2, 4, 8, 16, 16, 16])
    assert sharpening(0.5, 0.0, 1.0) == 1
    assert sharpening(0.5, 1.0, 10.0) == 1


def test_sharp_gates_are_the_thresholds_decisions() -> None:
    """Scores of which a twentieth lies near 0: a third of a gate at first, an open or a closed one at the end."""
    torch.manual_seed(0)
    tokens = visual_tokens([[(1, 40, 40)]])
    scores = torch.randn(1600) * 2 - 2
    hard = mean_retention((scores > 0).float(), tokens)
    gaps = [(mean_retention((factor * scores).sigmoid(), tokens) - hard).abs().item() for factor in (1.0, 10.0, 1e3)]
    assert gaps[0] > 0.04 > 0.003 > gaps[1] > gaps[2]
    gates = log_gates(1e3 * scores, 0.3)
    settled = scores.abs() > 0.02
    assert torch.equal((gates > -0.1)[settled], (scores > 0)[settled])
    assert torch.equal(gates.isneginf()[settled], (scores < 0)[settled])


def test_objectives_sharpen_at_the_end() -> None:
    kl, mask = KL(anneal=0.6, sharpness=10.0), Mask(sharpness=10.0)
    for objective, start in ((kl, 0.6), (mask, 0.5)):
        objective.progress = start
        assert objective.factor == 1
        objective.progress = 1.0
        assert objective.factor == pytest.approx(10)
    assert Mask().sharpness == 1  # as published
    for kind in (KL, Mask):
        with pytest.raises(ValueError, match=r"`sharpness` to be at least 1, but got 0\.5"):
            kind(sharpness=0.5)


def test_a_training_that_ends_well_says_nothing() -> None:
    assert ending(0.095, 0.0945, 0.095) == []
    assert ending(0.3, 0.3, None) == []
    assert ending(0.34, 0.341, 0.33) == []  # a twentieth of a large budget
    assert Ending().remarks() == []


def test_a_gap_and_a_missed_budget_are_told() -> None:
    (gap, off) = ending(0.095, 0.08, 0.095)
    assert "in the last 3 steps they let 9.5% through in sum, and a threshold of 0.5 keeps 8.0%" in gap
    assert "`model.objective.sharpness`" in gap
    assert "8.0% were kept, and 9.5% were asked for" in off
    (gap,) = ending(0.095, 0.08, None)
    assert "half-open" in gap


def test_only_where_policies_decide_at_a_half() -> None:
    for policy in (gl.policies.KeepRatio(0.1), gl.policies.Threshold(0.4), gl.policies.Threshold(0.0, scale="raw")):
        assert ending(0.095, 0.08, 0.095, policy) == []
        assert ending(0.095, 0.08, 0.095, HALF, policy) == []
    assert len(ending(0.095, 0.08, 0.095, HALF, HALF)) == 2
    assert Ending().add(None, torch.tensor(0.1), torch.tensor(0.2), 0.1) is None


def test_the_end_of_a_short_training_is_its_last_tenth() -> None:
    """Else a budget that falls from all to a tenth would end with their mean."""
    found = Ending()
    for step in range(20):
        share = 1 - 0.05 * step
        found.add(pruner(HALF), torch.tensor(share), torch.tensor(share), 0.05, step / 20)
    (off,) = found.remarks()
    assert "in the last 2 steps 7.5% were kept, and 5.0% were asked for" in off
    again = Ending()
    again.load(found.state())
    assert again.remarks() == found.remarks()
    again.load([step[:4] for step in found.state()])  # as 0.2.0 wrote them
    assert "in the last 20 steps 52.5%" in again.remarks()[0]
    single = Ending()
    single.add(pruner(HALF), torch.tensor(0.5), torch.tensor(0.5), 0.1, 0.0)
    assert "in the last step 50.0% were kept" in single.remarks()[0]


def test_only_the_last_steps_count() -> None:
    found = Ending(steps=2)
    for hard in (0.5, 0.095, 0.095):
        found.add(pruner(HALF), torch.tensor(hard), torch.tensor(hard), 0.095)
    assert found.remarks() == []
