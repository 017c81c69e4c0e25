"""Retention and threshold of one call: of ``prefill``, ``generate``, a module, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import visual_tokens
from test_contracts import POLICIES, make

import glimpse_lightning as gl
from glimpse_lightning import policies
from glimpse_lightning.__main__ import main
from glimpse_lightning.policies import Budgeted, KeepRatio, Threshold

BY_ITSELF = {"TopP", "Outliers", "GridCells", "PixelPrune"}
"""Policies without a budget."""
BATCH = [[(1, 4, 5)], [], [(1, 2, 4), (2, 3, 2)]]


@pytest.fixture(scope="module")
def backbone() -> gl.Backbone:
    return gl.load_backbone("glimpse-tiny")


@pytest.fixture(scope="module")
def batch(backbone: gl.Backbone) -> gl.Batch:
    return backbone.collate([gl.GlyphVQA("test")[index] for index in range(2)])


def pruned(backbone: gl.Backbone, *stages: gl.PruneStage) -> gl.PrunedVLM:
    return gl.PrunedVLM(backbone, gl.Pruner([*stages]))


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_takes_a_retention_or_refuses_it_by_name(kind: type) -> None:
    policy = make(kind)
    if kind.__name__ in BY_ITSELF:
        with pytest.raises(gl.GlimpseError, match=f"{kind.__name__} decides by itself.*`retention` of 0.4"):
            policy.with_budget(retention=0.4)
        return
    other = policy.with_budget(retention=0.4)
    tokens = visual_tokens(BATCH, policy.requires)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
    before = policy.select(scores, tokens)
    kept = other.select(scores, tokens)
    assert torch.equal(policy.select(scores, tokens), before)  # the policy itself is as it was
    if isinstance(other, Budgeted) and kind.__name__ not in ("Recycled", "FromFunction"):
        group, most = other.budget(tokens)
        assert torch.equal(torch.bincount(group[kept], minlength=len(most)), most.minimum(torch.bincount(group)))
        assert other.budget.ratio == 0.4 and other.budget.per == policy.per
    with pytest.raises(ValueError, match=r"1\.4"):
        policy.with_budget(retention=1.4)


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind is not Threshold])
def test_only_a_threshold_has_a_threshold(kind: type) -> None:
    with pytest.raises(gl.GlimpseError, match=f"{kind.__name__} .*threshold"):
        make(kind).with_budget(threshold=0.4)


def test_a_threshold_keeps_its_cap_and_its_floor() -> None:
    policy = Threshold(0.5, max_ratio=0.25, min_tokens=2, anchors=["tl"])
    other = policy.with_budget(threshold=0.9)
    assert isinstance(other, Threshold)
    assert (other.threshold, other.max_ratio, other.min_tokens, other.anchors) == (0.9, 0.25, 2, ["tl"])
    assert policy.threshold == 0.5
    share = policy.with_budget(retention=0.1)
    assert isinstance(share, KeepRatio) and (share.ratio, share.per, share.min_tokens) == (0.1, "sample", 2)
    with pytest.raises(ValueError, match="threshold"):
        policy.with_budget(threshold=1.5)


def test_a_call_equals_a_pruner_of_that_budget(backbone: gl.Backbone, batch: gl.Batch) -> None:
    """Selection, merged states and answer, of a reducer whose targets depend on the budget."""

    def visionzip(ratio: float) -> gl.PrunedVLM:
        policy = policies.DominantContextual(ratio=ratio)
        return pruned(backbone, gl.PruneStage(-1, gl.scorers.VisionRank(-1), policy, gl.reducers.MergeNearest("add")))

    ours, asked = visionzip(0.5), visionzip(0.11)
    out, expected = ours.prefill(retention=0.11, **batch.inputs), asked.prefill(**batch.inputs)
    assert torch.equal(out.keep[0], expected.keep[0]) and torch.equal(out.logits, expected.logits)
    said = ours.generate(retention=0.11, max_new_tokens=4, **batch.inputs)
    assert torch.equal(said, asked.generate(max_new_tokens=4, **batch.inputs))
    again = visionzip(0.5).prefill(**batch.inputs)
    assert torch.equal(ours.prefill(**batch.inputs).logits, again.logits)  # nothing is left behind


def test_stages_have_a_budget_each(backbone: gl.Backbone, batch: gl.Batch) -> None:
    stages = [gl.PruneStage(layer, gl.scorers.AttentionRank(), KeepRatio(0.5)) for layer in (1, 3)]
    model = pruned(backbone, *stages)
    out = model.prefill(retention=[0.25, 0.125], **batch.inputs)
    assert [int(keep.sum()) for keep in out.keep] == [2 * 64, 2 * 32]
    for value in (0.25, [0.25]):
        with pytest.raises(gl.GlimpseError, match="each of the pruner's 2 stages, as a list"):
            model.prefill(retention=value, **batch.inputs)


def test_contradictions_are_named(backbone: gl.Backbone, batch: gl.Batch) -> None:
    model = pruned(backbone, gl.PruneStage(1, gl.scorers.AttentionRank(), KeepRatio(0.5)))
    with pytest.raises(gl.GlimpseError, match="either `retention` or `threshold`"):
        model.prefill(retention=0.1, threshold=0.1, **batch.inputs)
    with pytest.raises(gl.GlimpseError, match="KeepRatio keeps a number of tokens"):
        model.generate(threshold=0.1, **batch.inputs)
    with pytest.raises(gl.GlimpseError, match="there is none"):
        gl.PrunedVLM(backbone).generate(retention=0.1, **batch.inputs)
    with pytest.raises(gl.GlimpseError, match="retention would not be read"):
        model.generate(model.prefill(**batch.inputs), retention=0.1)
    with pytest.raises(ValueError, match=r"1\.5"):
        model.prefill(retention=1.5, **batch.inputs)


def result(folder: Path, *flags: str, command: str = "test") -> Any:
    common = ["--trainer.default_root_dir", str(folder), "--data.test_size", "2", "--data.num_workers", "0"]
    assert main([command, "--config", "methods/fastv", *common, "--model.baselines", "[]", *flags]) == 0
    return json.loads((folder / "fastv" / "test_0" / "results.json").read_text())


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert result(tmp_path / "a", "--retention", "0.25")["metrics"]["retention"] == 0.25
    picture = ["--image", "docs/images/question.png", "--question", "what is drawn in cyan", "--retention", "0.5"]
    root = ["--trainer.default_root_dir", str(tmp_path / "b")]
    assert main(["predict", "--config", "methods/fastv", *picture, *root]) == 0
    assert "Kept 128 of 256 visual tokens (50.0%)" in capsys.readouterr().out
    assert main(["test", "--config", "methods/full", "--retention", "0.5", *root]) == 1
    assert "`model.retention` or `model.threshold` could be set for" in capsys.readouterr().err
    assert main(["fit", "--config", "vip_kl", "--retention", "0.5", *root]) == 1
    assert "What a training aims at is said by its objective" in capsys.readouterr().err


def test_a_budget_without_a_pruner_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glimpse_lightning.evaluation.vlm_module.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(gl.GlimpseError, match="could be set for"):
        gl.EvaluationModule(retention=0.5).configure_model()
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), KeepRatio(0.5))
    with pytest.raises(gl.GlimpseError, match="has no threshold"):
        gl.EvaluationModule(stages=[stage], threshold=0.5).configure_model()


def test_what_a_recipe_describes_has_its_budget() -> None:
    """For `bench --recipe` as for a test."""
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), KeepRatio(0.5))
    module = gl.EvaluationModule(stages=[stage], retention=0.25)
    for _ in range(2):
        pruner = module.described_pruner()
        assert pruner is not None and isinstance(pruner.stages[0].policy, KeepRatio)
        assert pruner.stages[0].policy.ratio == 0.25


def test_a_saved_pruner_keeps_another_share(backbone: gl.Backbone, tmp_path: Path) -> None:
    pruner = gl.Pruner([gl.PruneStage(2, gl.scorers.VIP(vision_layers=[1]), Threshold())])
    pruner.build(backbone.facts)
    module = gl.EvaluationModule(pruner=str(gl.save_pruner(pruner, tmp_path / "pruner")), retention=0.125)
    module.configure_model()
    (stage,) = module.model.pruner.stages  # type: ignore[union-attr]
    assert isinstance(stage.policy, KeepRatio) and stage.policy.ratio == 0.125


def test_a_fit_that_could_not_save_its_pruner_does_not_begin() -> None:
    def first(features: torch.Tensor, budget: int) -> range:
        return range(budget)

    stages = [
        gl.PruneStage(-1, *gl.from_function(first, 0.5)),
        gl.PruneStage(3, gl.scorers.VIP(vision_layers=[1]), Threshold()),
    ]
    module = gl.PruningModule(stages=stages, objective=gl.objectives.KL(retention=0.1))
    with pytest.raises(gl.GlimpseError, match="so that it can be saved"):
        module.check_fit()
