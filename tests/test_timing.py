"""What a question costs, measured after a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import glimpse_lightning as gl
from glimpse_lightning.__main__ import main
from glimpse_lightning.evaluation.timing import COSTS, costs
from glimpse_lightning.latency.measure import sizes


@pytest.fixture(scope="module")
def model() -> gl.PrunedVLM:
    stage = gl.PruneStage(1, gl.scorers.FixedRatio(), gl.policies.TopK(16))
    return gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))


def test_both_models_are_measured_on_each_question(model: gl.PrunedVLM) -> None:
    samples = [gl.GlyphVQA("test")[index] for index in range(3)]
    found = costs(model, samples)
    assert found["questions"] == 3
    for name in COSTS:
        one = found[name]
        assert 0 < one["low"] <= one["ratio"] <= one["high"] and min(one["pruned"], one["full"]) > 0
    lengths = [model.backbone.collate([sample]).inputs["input_ids"].shape[1] for sample in samples]
    shares = sorted((length - 240) / length for length in lengths)
    assert found["kv_bytes"]["ratio"] == pytest.approx(shares[1])


def test_weights_are_measured_as_they_are_loaded(model: gl.PrunedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module freezes them; torch then copies a head's weight for each token, in bfloat16 on a CPU."""
    weights = list(model.backbone.model.parameters())
    monkeypatch.setattr("glimpse_lightning.evaluation.timing.times", lambda *_: {"ttft": 1.0, "tpot": 1.0})

    def watching(*args):  # type: ignore[no-untyped-def]
        assert all(weight.requires_grad for weight in weights)
        return sizes(*args)

    monkeypatch.setattr("glimpse_lightning.evaluation.timing.sizes", watching)
    before = [weight.requires_grad for weight in weights]
    model.backbone.model.requires_grad_(False)
    weights[0].requires_grad_(True)
    costs(model, [gl.GlyphVQA("test")[0]])
    assert [weight.requires_grad for weight in weights] == [True] + [False] * (len(weights) - 1)
    for weight, wanted in zip(weights, before, strict=True):
        weight.requires_grad_(wanted)


def test_a_cut_of_the_images_is_measured_against_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(variant, inputs, *args):  # type: ignore[no-untyped-def]
        seen.append(int((inputs["input_ids"] == variant.backbone.model.config.image_token_id).sum()))
        return sizes(variant, inputs, *args)

    monkeypatch.setattr("glimpse_lightning.evaluation.timing.sizes", counting)
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"))
    found = costs(model, [gl.GlyphVQA("test")[0]], gl.ResolutionCut(ratio=0.25))
    assert sorted(seen) == [64, 256]
    assert found["kv_bytes"]["ratio"] < 0.5


def test_a_test_measures_costs_and_changes_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(folder: str, *flags: str) -> dict:
        common = ["--data.test_size", "4", "--data.num_workers", "0", "--model.baselines", "[Random]"]
        root = ["--trainer.default_root_dir", str(tmp_path / folder)]
        assert main(["test", "--config", "methods/fastv", *common, *root, *flags]) == 0
        return json.loads((tmp_path / folder / "fastv" / "test_0" / "results.json").read_text())

    without = run("a")
    assert without["costs"] is None and "one at a time" not in capsys.readouterr().out
    found = run("b", "--model.latency", "2")
    said = capsys.readouterr().out
    assert found["costs"]["questions"] == 2 and found["metrics"] == without["metrics"]
    assert "2 questions, one at a time, 8 tokens each" in said and "time to first token" in said
    predictions = [(tmp_path / name / "fastv" / "test_0" / "predictions.jsonl").read_text() for name in ("a", "b")]
    assert predictions[0] == predictions[1]


def test_the_full_model_has_no_costs_to_compare() -> None:
    module = gl.EvaluationModule("glimpse-tiny", baselines=[], latency=1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(module, gl.VQAData(test=gl.GlyphVQA("test", size=1), num_workers=0), verbose=False)
    assert module.costs is None


def test_a_number_of_questions_is_asked_for() -> None:
    with pytest.raises(gl.GlimpseError, match=r"`model\.latency` to be a number of questions, 0 or more, but got -1"):
        gl.EvaluationModule("glimpse-tiny", latency=-1)


def test_costs_need_a_whole_model(model: gl.PrunedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    module = gl.EvaluationModule("glimpse-tiny", baselines=[], latency=1)
    module.configure_model()
    monkeypatch.setattr(gl.PrunedVLM, "sharded", True)
    with pytest.raises(gl.GlimpseError, match="this one is sharded"):
        module.on_test_epoch_start()
    assert torch.is_grad_enabled()
