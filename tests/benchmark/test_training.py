"""Training steps measured through the real command line, and the FLOPs that are predicted for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glimpse_lightning.bench.training_theory import STEPS, StepCase
from glimpse_lightning.cli import main
from glimpse_lightning.core.visual_tokens import ModelFacts

SMALL = {
    "model": "glimpse-tiny", "device": "cpu", "scorer": "VIP", "visual_tokens": [144], "text_tokens": 12,
    "scorer_args": {"attention_dim": 32, "condition_dim": 32}, "after_layers": [3], "training": list(STEPS),
    "answer_tokens": 4, "warmup": 0, "repetitions": 1,
}  # fmt: skip


def bench(folder: Path, **changes: Any) -> int:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return main(["bench", "--config", str(path), "--output", str(folder / "bench.json")])


def test_record(tmp_path: Path) -> None:
    assert bench(tmp_path) == 0
    (group,) = json.loads((tmp_path / "bench.json").read_text())["groups"]
    assert (group["after_layer"], group["depth"], group["visual_tokens"]) == (3, 0.5, 144)
    measured = [(row["step"], row["vision_tower"]) for row in group["rows"]]
    assert measured == [(step, vision) for step in STEPS for vision in (True, False)]
    for row in group["rows"]:
        assert row["loss"]["ours"] == pytest.approx(row["loss"]["straightforward"], rel=1e-4)
        assert row["memory_ratio"] < 1
        assert row["gain"]["value"] == row["seconds"]["straightforward"]["median"] / row["seconds"]["ours"]["median"]
        for way, flops in row["flops"].items():  # rows of captured attention, and dice and KL, are not counted
            assert flops == pytest.approx(row["predicted_flops"][way], rel=0.01), (row["step"], way)
    text = (tmp_path / "bench.md").read_text()
    assert "gain / predicted" in text and "| 1 rounds after 0 of warm-up |" in text


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    assert bench(tmp_path, max_prompt_tokens=100) == 0
    (group,) = json.loads((tmp_path / "bench.json").read_text())["groups"]
    assert "max_prompt_tokens" in group["left_out"]
    assert "| 3 | 0.500 | left out: more than max_prompt_tokens = 100 |" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": ["masks"]}, ["`training`", "mask_with_answers"]),
        ({"scorer": "AttentionRank", "scorer_args": {}}, ["glimpse token", "scorer: VIP"]),
        ({"pruner": "somewhere"}, ["`pruner`", "left out"]),
        ({"after_layers": [7]}, ["`after_layers`", "last layer"]),
    ],
)
def test_mistakes_are_named(
    changes: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, **changes) == 1
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "bench.json").exists()


def test_gain_of_long_prompts() -> None:
    """Projections alone: a mask step saves the backward pass, distillation what teacher and student share as well."""
    facts = ModelFacts(12, 1, 1, 8, 4096, 16384, 1e-6, 4, 64)  # attention next to nothing
    for layer, wanted in ((2, (3.5, 2.5)), (5, (4.0, 2.0)), (7, (13 / 3, 5 / 3))):
        case = StepCase(facts, layer, 1, 2000, 2, 10)
        assert case.gain("mask_with_answers") == pytest.approx(2, rel=0.01)
        assert case.gain("kl") == pytest.approx(wanted[0] / wanted[1], rel=0.06)  # layer K itself is cheaper
        assert 1.6 < case.gain("mask") < 2
        assert case.with_vision(1e12).gain("kl") < case.gain("kl")
