from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import KL
from glimpse_lightning.policies import KeepRatio, Threshold
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import VIP, Random
from glimpse_lightning.training.module import OptimizerOptions, PruningModule
from glimpse_lightning.training.optimization import adamw, learning_rate_factor


def vip(**kwargs: Any) -> PruningModule:
    scorer = VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, **kwargs)
    return PruningModule(after_layer=1, scorer=scorer, policy=Threshold(), objective=KL(), max_new_tokens=2)


def random_module(ratio: float = 0.5, **kwargs: Any) -> PruningModule:
    return PruningModule(after_layer=0, scorer=Random(), policy=KeepRatio(ratio), max_new_tokens=3, **kwargs)


def glyphs(size: int = 5, batch: int = 2, **kwargs: Any) -> VQAData:
    data = GlyphVQA("test", size, image_size=224)
    return VQAData(val=data, test=data, eval_batch_size=batch, num_workers=0, **kwargs)


def trainer(root: Path, **kwargs: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=root, **(quiet | kwargs))


def test_only_the_pruner_trains_and_is_saved() -> None:
    module = vip()
    module.configure_model()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith("vlm.pruner.") for name in trained)
    assert set(module.state_dict()) == trained
    first = module.vlm
    module.configure_model()
    assert module.vlm is first


def test_dropout_only_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh pruner scores without it, although its modules are made when it is attached to a model."""
    module, seen = vip(dropout=0.5), []
    module.configure_model()
    pruner = module.model.pruner
    assert pruner is not None
    assert not any(part.training for part in pruner.modules())
    step = KL.step
    monkeypatch.setattr(KL, "step", lambda *args: seen.append({m.training for m in pruner.modules()}) or step(*args))
    data = VQAData(train=GlyphVQA("train", 8, image_size=224), batch_size=2, num_workers=0)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, datamodule=data)
    assert seen == [{True}, {True}]
    assert not any(part.training for part in pruner.modules())


def test_training_changes_the_pruner_and_nothing_else(tmp_path: Path) -> None:
    module = vip()
    module.configure_model()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = VQAData(train=GlyphVQA("train", 8, image_size=224), batch_size=2, num_workers=0)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, datamodule=data)
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("pruner.") for name in changed)


@pytest.mark.parametrize("part", [{"query": "last"}, {"vision_condition": False}, {"rotary": False}, {"fusion": False}])
def test_vip_without_one_of_its_parts_trains(tmp_path: Path, part: dict[str, Any]) -> None:
    module = vip(**part)
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = VQAData(train=GlyphVQA("train", 2, image_size=224), batch_size=2, num_workers=0)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    still = {name for name, value in module.state_dict().items() if torch.equal(value, before[name])}
    # Zeros in place of the vision states leave the projection's weight without a gradient, and softmax ignores biases.
    allowed = {name for name in before if "cond_in_projs" in name} if "vision_condition" in part else set()
    assert still <= allowed


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    module, other = vip(), vip(upstream={"glimpse_length": 2})
    module.configure_model()
    other.configure_model()
    with pytest.raises(GlimpseError, match="other trained parameters"):
        module.load_state_dict(other.state_dict())
    state = module.state_dict()
    state.popitem()
    with pytest.raises(GlimpseError, match="1 differ"):
        module.load_state_dict(state)


def test_a_pruner_is_described_in_one_way() -> None:
    stage = PruneStage(0, Random(), KeepRatio(0.5))
    with pytest.raises(GlimpseError, match="stages and pruner"):
        PruningModule(stages=[stage], pruner="x")
    with pytest.raises(GlimpseError, match=r"policy is missing \(given: after_layer, scorer\)"):
        PruningModule(after_layer=0, scorer=Random())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda: PruneStage(8, Random(), KeepRatio(0.5)), "`after_layer` below 8"),
        (lambda: PruneStage(0, Random(), KeepRatio(0.5, min_tokens=0)), "KeepRatio may keep no token"),
    ],
)
def test_recipes_may_not_prune_everything_unless_they_say_so(stage: Any, message: str) -> None:
    with pytest.raises(GlimpseError, match=message):
        PruningModule(stages=[stage()]).configure_model()
    PruningModule(stages=[stage()], allow_empty=True).configure_model()


@pytest.mark.parametrize("layer", [8, 40])
def test_a_stage_beyond_the_model_says_that_it_prunes_the_cache_only(layer: int) -> None:
    """Its figures count tokens as dropped, while every layer runs on all of them."""
    with pytest.warns(UserWarning, match=f"after layer {layer} of a model with 8 .* prunes the KV cache only"):
        PrunedVLM(load_backbone("glimpse-tiny"), Pruner([PruneStage(layer, Random(), KeepRatio(0.5))]))


def test_a_ratio_of_nothing_keeps_a_token_and_says_so() -> None:
    module = PruningModule(after_layer=1, scorer=Random(), policy=KeepRatio(0.0))
    with pytest.warns(UserWarning, match="`ratio` of 0 keeps 1 visual token of each sample, its `min_tokens`"):
        module.configure_model()


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    options = OptimizerOptions(warmup=0.1, final=0.2)
    factors = [learning_rate_factor(progress / 10, options) for progress in range(11)]
    assert factors[0] < 0.01
    assert factors[1] == pytest.approx(1.0)
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert factors[10] == pytest.approx(0.2)
    assert learning_rate_factor(0, OptimizerOptions(warmup=0)) == 1.0


def test_parts_may_have_their_own_learning_rates() -> None:
    trained = {name: torch.nn.Parameter(torch.zeros(2, *shape)) for name, shape in
               {"pruner.w": (3,), "pruner.b": (), "model.w": (3,), "model.head.w": (3,)}.items()}  # fmt: skip
    options = OptimizerOptions(lr=1e-4, lr_of={"pruner.*": 1e-3, "*.head.*": 1e-5}, warmup=0, weight_decay=0.1)
    optimizer = adamw(trained, options, 10)["optimizer"]
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert [found[id(p)] for p in trained.values()] == [(1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.1), (1e-5, 0.1)]
    with pytest.raises(GlimpseError, match=r"'prunner\.\*', which fits none of the 4"):
        adamw(trained, OptimizerOptions(lr_of={"prunner.*": 1e-3}), 10)


def test_evaluation_compares_with_the_full_model_and_baselines(tmp_path: Path) -> None:
    module = random_module(0.3)
    trainer(tmp_path).test(module, datamodule=glyphs(), verbose=False)
    summary = module.summary
    assert summary is not None
    assert [record.id for record in summary.records] == [GlyphVQA("test", 5, image_size=224)[i].id for i in range(5)]
    assert set(summary.baselines) >= {"AttentionRank", "FixedRatio", "Random"}
    assert "VIP" not in summary.baselines
    assert summary.metrics["retention"] == 19 / 64
    assert summary.metrics["random_retention"] == 19 / 64
    assert summary.metrics["random_accuracy"] == summary.metrics["accuracy"]  # it is the same method
    assert summary.metrics["kl"] > 0
    assert summary.metrics["oracle_retention"] > 0


def test_keeping_everything_changes_nothing(tmp_path: Path) -> None:
    module = random_module(1.0, baselines=[])
    trainer(tmp_path).test(module, datamodule=glyphs(3), verbose=False)
    assert module.summary is not None
    metrics = module.summary.metrics
    assert (metrics["retention"], metrics["agreement"], metrics["evidence_recall"]) == (1.0, 1.0, 1.0)
    assert metrics["accuracy"] == metrics["full_accuracy"]
    assert metrics["kl"] < 1e-5


def test_the_full_model_answers_each_question_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = random_module()
    runner = trainer(tmp_path)
    runner.validate(module, datamodule=glyphs(4), verbose=False)
    assert len(module.evaluator.cache) == 4
    calls: list[int] = []
    monkeypatch.setattr(module.evaluator.full, "generate", lambda **kwargs: calls.append(1))
    runner.validate(module, datamodule=glyphs(4), verbose=False)
    assert not calls


def test_the_full_model_alone_can_be_evaluated(tmp_path: Path) -> None:
    module = PruningModule(max_new_tokens=2)
    trainer(tmp_path).test(module, datamodule=glyphs(2), verbose=False)
    assert module.summary is not None
    assert module.summary.metrics["retention"] == 1.0
    assert not module.summary.baselines


def test_baselines_that_cannot_score_there_are_left_out(tmp_path: Path) -> None:
    module = PruningModule(after_layer=-1, scorer=Random(), policy=KeepRatio(0.5), max_new_tokens=2)
    trainer(tmp_path).test(module, datamodule=glyphs(2), verbose=False)
    assert module.summary is not None
    assert set(module.summary.baselines) >= {"FixedRatio", "Random"}
    assert "AttentionRank" not in module.summary.baselines


def test_answers_without_a_trainer() -> None:
    module = PruningModule(backbone=load_backbone("glimpse-tiny"), max_new_tokens=2)  # type: ignore[arg-type]
    assert len(module.answer([GlyphVQA("test", 2, image_size=224)[0]])) == 1
