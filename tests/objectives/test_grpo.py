"""GRPO on real models: what is trained is what was sampled."""

from __future__ import annotations

import dataclasses
import math
from fnmatch import fnmatch
from typing import Any

import pytest
import tiny_models
import torch
from halves import attends_in_bfloat16
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.evaluation.answers import prefill
from glimpse_lightning.evaluation.evaluator import answer_log_probs
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import GRPO, Supervised
from glimpse_lightning.objectives.keep_choice import KeepChoice, bernoulli_log_probs, choose, repeat
from glimpse_lightning.objectives.policy_gradient import group_deviation
from glimpse_lightning.objectives.rollouts import Rollout, sample_answers, token_log_probs

REWARDS: dict[str, Any] = {"length": {"weight": 1.0, "free": 1, "longest": 6}, "pruning_rate": 1.0}


def vip() -> gl.Pruner:
    torch.manual_seed(1)
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    return gl.Pruner([gl.PruneStage(2, scorer, gl.policies.Threshold())])


@pytest.fixture
def model() -> PrunedVLM:
    return PrunedVLM(gl.load_backbone("glimpse-tiny"), vip())


@pytest.fixture
def batch(model: PrunedVLM) -> Batch:
    data = gl.GlyphVQA("train", 6, image_size=224)
    return model.backbone.collate([data[i] for i in (0, 3, 4)])


def prepared(model: PrunedVLM, **kwargs: Any) -> GRPO:
    """The objective, with the model as the module would have it."""
    torch.manual_seed(0)
    objective = GRPO(**{"rewards": REWARDS, "group_size": 4, "max_new_tokens": 6, "temperature": 1.7} | kwargs)
    objective.prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in objective.trainable))
    objective.remember(model)
    objective.start(model)
    return objective


def ready_batch(model: PrunedVLM, sizes: list[list[tuple[int, int]]]) -> Batch:
    """Prompts of a random model without a processor."""
    inputs = model.backbone.example_inputs(sizes)
    rows = len(sizes)
    samples = [gl.Sample(str(i), i, "?", ["x"]) for i in range(rows)]
    ids = torch.ones(rows, 1, dtype=torch.long)
    return Batch(inputs, ids, ids, torch.arange(rows), torch.ones(rows), samples)


def ratio_error(model: PrunedVLM, batch: Batch, rollout: Rollout, temperature: float) -> float:
    out = model.replay(batch, rollout.ids, rollout.mask, select=repeat(rollout.choice, []))
    ratio = (token_log_probs(out.logits, rollout.ids, temperature) - rollout.log_probs).exp()
    return (ratio - 1)[rollout.mask].abs().max().item()


@pytest.mark.parametrize("train", [("language_model",), ("pruner",)])
def test_the_vision_tower_runs_once_a_step(model: PrunedVLM, batch: Batch, train: tuple[Any, ...]) -> None:
    """For rollouts, reference and loss together, while the text embeddings are those of the moment."""
    objective = prepared(model, train=train, kl_weight=0.1)
    calls: list[int] = []
    handle = model.model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    seen = objective.step(model, batch).loss
    handle.remove()
    assert calls == [1]
    objective = prepared(model, train=train, kl_weight=0.1)
    objective.seen = lambda model, batch, copies: batch  # type: ignore[method-assign]
    torch.testing.assert_close(seen, objective.step(model, batch).loss)


BOTH = ("language_model", "pruner")
SHARED = [(BOTH[:1], True), (BOTH[1:], True), (BOTH, False)]
SLOW_SHARED = [(BOTH[:1], False), (BOTH[1:], False), (BOTH, True)]


@pytest.mark.parametrize(
    ("train", "alike"), [*SHARED, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_SHARED)]
)
def test_copies_and_questions_about_one_image_share_their_prefix(
    model: PrunedVLM, train: tuple[Any, ...], alike: bool
) -> None:
    """A step and its gradients are those of prompts that each run for themselves."""
    data = gl.GlyphVQA("train", 6, image_size=224, questions_per_image=2)
    batch = model.backbone.collate([data[i] for i in ((0, 1, 2) if alike else (0, 2, 4))])
    found: list[Any] = []
    for shared in (True, False):
        objective = prepared(model, train=train, kl_weight=0.1)
        for parameter in model.parameters():
            parameter.grad = None
        if not shared:
            objective.seen = lambda model, batch, copies: batch  # type: ignore[method-assign]
        ready = objective.seen(model, batch, objective.prefills)
        assert (ready.shared is not None) == (shared and (alike or objective.prefills > 1))
        torch.manual_seed(0)
        result = objective.step(model, batch)
        result.loss.backward()
        found.append((result, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (mine, grads), (plain, expected) = found
    assert mine.logs["reward"] == plain.logs["reward"]
    torch.testing.assert_close(mine.loss, plain.loss, atol=1e-6, rtol=1e-4)
    assert grads.keys() == expected.keys()
    for name in grads:
        torch.testing.assert_close(grads[name], expected[name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("train", "times"), [(("language_model",), 1), (("language_model", "pruner"), 2)])
def test_tokens_are_scored_where_somebody_decides_or_learns(
    model: PrunedVLM, batch: Batch, train: tuple[Any, ...], times: int
) -> None:
    """By the rollouts, and again to train the pruner; the reference and the language model take what was kept."""
    objective = prepared(model, train=train, kl_weight=0.1)
    calls: list[int] = []
    assert model.pruner is not None
    model.pruner.stages[0].scorer.register_forward_hook(lambda *_: calls.append(1))
    objective.step(model, batch)
    assert len(calls) == times


# The others' decoders hold nothing that these do not.
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("llava", "internvl")]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "qwen3_vl", *SLOW_FAMILIES])
def test_before_any_update_the_ratio_is_one(family: str) -> None:
    """Batched, ragged prompts and answers, several stages, random weights; against ``generate``'s own numbers."""
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[family]())
    stages = [
        gl.PruneStage(0, gl.scorers.Random(), gl.policies.KeepRatio(0.8)),
        gl.PruneStage(2, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.4)),
    ]
    model = PrunedVLM(backbone, gl.Pruner(stages))
    model.generation_config.eos_token_id = list(range(20, 40))
    square = family not in ("qwen2_5_vl", "qwen3_vl")
    sizes = [[(4, 4)], [(4, 4)] * 2, [(4, 4)]] if square else [[(5, 7)], [(3, 4), (2, 2)], [(6, 3)]]
    batch = ready_batch(model, sizes)
    torch.manual_seed(0)
    rollout = sample_answers(model, batch, 4, max_new_tokens=9, temperature=1.3)
    lengths = rollout.mask.sum(1)
    assert rollout.ids.shape[0] == 12 and lengths.min() < lengths.max()
    assert ratio_error(model, batch, rollout, 1.3) < 1e-4


def test_sampling_ignores_the_models_own_generation_settings(model: PrunedVLM, batch: Batch) -> None:
    model.generation_config.repetition_penalty, model.generation_config.top_k = 3.0, 2
    rollout = sample_answers(model, batch, 4, max_new_tokens=6, temperature=2.0)
    assert ratio_error(model, batch, rollout, 2.0) < 1e-4
    torch.manual_seed(0)
    first = sample_answers(model, batch, 4, max_new_tokens=6, temperature=2.0).ids
    torch.manual_seed(0)
    model.generation_config.repetition_penalty, model.generation_config.top_k = 1.0, 50
    assert torch.equal(first, sample_answers(model, batch, 4, max_new_tokens=6, temperature=2.0).ids)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train": ["pruner"]},
        {"train": ["pruner", "language_model"]},
        {"variant": "dr_grpo", "rollout_masks": "mixed"},
        {"variant": "rloo", "mean": "token"},
    ],
    ids=str,
)
def test_the_first_step_is_on_policy_and_reaches_what_it_trains(
    model: PrunedVLM, batch: Batch, options: dict[str, Any]
) -> None:
    objective = prepared(model, **options)
    result = objective.step(model, batch)
    if "ratio" in result.logs:
        assert result.logs["ratio"].item() == pytest.approx(1, abs=1e-4)
        assert result.logs["clipped"] == 0 and result.logs["kl"] < 1e-8
    result.loss.backward()
    trained = {name.split(".")[0]: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(trained) == {{"language_model": "model", "pruner": "pruner"}[part] for part in objective.train}
    assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".visual." in name)
    for name in ("reward", "reward_std", "entropy", "length", "finished", "hard_retention", "ties"):
        assert torch.isfinite(result.logs[name]), name


@attends_in_bfloat16
@pytest.mark.parametrize("train", ["language_model", "pruner"])
def test_gradients_under_mixed_precision(model: PrunedVLM, batch: Batch, train: str) -> None:
    """Autocast's cache must not hand the rollouts' graphless weights to the trained forward."""
    grads = []
    for enabled in (False, True):
        objective = prepared(model, train=[train])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.manual_seed(1)
            objective.step(model, batch).loss.backward()
        grads.append({name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())})
        model.zero_grad()
    assert grads[0] and grads[1] == grads[0]


def test_iterations_reuse_the_answers_and_survive_a_checkpoint(model: PrunedVLM, batch: Batch) -> None:
    objective = prepared(model, iterations=3, clip=(0.05, 0.05))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for visit in range(3):
        if visit == 1:  # as a resumed run finds it
            state, objective = objective.state_dict(), GRPO(iterations=3, clip=(0.05, 0.05), temperature=1.7)
            objective.prepare(model)
            objective.load_state_dict(state)
        result = objective.step(model, batch)
        assert ("reward" in result.logs) == (visit == 0)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result)
    assert losses[0].logs["clipped"] == 0 < losses[2].logs["clipped"]
    assert losses[2].loss < losses[0].loss
    assert not objective.state_dict()
    assert "reward" in objective.step(model, batch).logs  # new answers


def test_the_reference_is_what_the_model_was(model: PrunedVLM, batch: Batch) -> None:
    with torch.no_grad():
        before = prefill(model, batch).logits
    objective = prepared(model)
    changed = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in changed:
            parameter.add_(0.05)
        after = prefill(model, batch).logits
        with objective.reference(model.backbone):
            assert torch.equal(prefill(model, batch).logits, before)
        assert torch.equal(prefill(model, batch).logits, after)
    assert objective.step(model, batch).logs["kl"] > 0


def test_oracle_rollouts_keep_the_evidence(model: PrunedVLM, batch: Batch) -> None:
    choice = KeepChoice()
    select = choose(choice, False, torch.ones(3, dtype=torch.bool))
    boxes = [sample.boxes for sample in batch.samples]
    out = model.prefill(keys=batch.key, boxes=boxes, select=select, **batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(out.keep[0], evidence_mask(out.tokens, boxes))


def test_a_prompt_without_boxes_is_pruned_by_the_policy(model: PrunedVLM, batch: Batch) -> None:
    objective = prepared(model, rollout_masks="oracle")
    assert "boxes" in objective.needs
    assert objective._oracle_prompts(batch).tolist() == [True, True, True]
    batch.samples[1].boxes = None
    assert objective._oracle_prompts(batch).tolist() == [True, False, True]


def test_the_references_stage_2(model: PrunedVLM, batch: Batch) -> None:
    """Tokens from the second on over pruned embeddings, first of the reference from the whole prompt."""
    objective = prepared(model, rollout_masks="oracle", old="replay", clip=None, forward="embeddings")
    rollout, _ = objective.roll_out(model, batch)
    before_layer_0 = PrunedVLM(model.backbone, gl.Pruner([gl.PruneStage(-1, gl.scorers.Random(), gl.policies.TopK(1))]))
    keep = rollout.choice.kept[0]

    def given(stage: Any, scores: Tensor, tokens: Any) -> Tensor:
        return keep

    pruned_first = before_layer_0.replay(batch, rollout.ids, rollout.mask, select=given)
    theirs = token_log_probs(pruned_first.logits, rollout.ids, 1.7)
    whole = PrunedVLM(model.backbone).replay(batch, rollout.ids, rollout.mask)
    first = token_log_probs(whole.logits, rollout.ids, 1.7)[:, 0]
    assert rollout.reference is not None
    mask = rollout.mask[:, 1:]
    torch.testing.assert_close(rollout.reference[:, 1:][mask], theirs[:, 1:][mask])
    torch.testing.assert_close(rollout.reference[:, 0], first)
    in_layer = model.replay(batch, rollout.ids, rollout.mask, select=given)
    ours, _, _ = objective._log_probs(model, batch, rollout, scored=False)
    torch.testing.assert_close(ours[:, 0], token_log_probs(in_layer.logits, rollout.ids, 1.7)[:, 0])
    torch.testing.assert_close(ours[:, 1:][mask], theirs[:, 1:][mask])
    _, logs = objective.rollout_loss(model, batch, rollout)
    assert logs["ratio"].item() == pytest.approx(1) and logs["kl"] > 0


def test_decisions_that_paid_become_likelier(model: PrunedVLM, batch: Batch) -> None:
    """With a reward on pruning alone, the scores fall."""
    objective = prepared(model, train=["pruner"], rewards={"pruning_rate": 1.0}, group_size=4, temperature=1.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    kept = []
    for _ in range(6):
        result = objective.step(model, batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        kept.append(result.logs["hard_retention"].item())
    assert kept[-1] < kept[0] - 0.1


def test_tokens_are_paid_for_by_the_pruner_alone(model: PrunedVLM, batch: Batch) -> None:
    objective = prepared(model, train=["pruner", "language_model"], rewards={"pruning_rate": 2.0}, variant="dr_grpo")
    rollout, logs = objective.roll_out(model, batch)
    assert rollout.advantages is not None and rollout.worth is not None
    assert not rollout.advantages.any() and logs["ties"] < 1
    rate = -rollout.retention.view(3, 4)
    torch.testing.assert_close(rollout.worth.view(3, 4), 2 * (rate - rate.mean(1, keepdim=True)))


def test_the_price_moves_until_the_budget_is_met(model: PrunedVLM, batch: Batch) -> None:
    options = {"train": ["pruner"], "rewards": {"pruning_rate": 2.0}, "retention": 0.25, "price_rate": 0.1}
    objective = prepared(model, **options)
    logs = objective.step(model, batch).logs
    excess = min(logs["hard_retention"].item() / 0.25 - 1, 0.5)
    assert excess > 0.1
    assert logs["price"].item() == pytest.approx(2 * math.exp(6 * excess))
    assert objective.price == pytest.approx(2 * math.exp(0.1 * excess))
    before, weight = objective.price, objective.reward.weights["pruning_rate"]
    objective._set_price(torch.empty(0))  # nobody's tokens were the pruner's choice
    assert (objective.price, objective.reward.weights["pruning_rate"]) == (before, weight)
    for same_ranks in (True, False):
        resumed = prepared(model, **options)
        resumed.load_state_dict(objective.state_dict(), same_ranks)
        assert resumed.price == objective.price


def test_the_price_is_of_tokens_that_the_pruner_chose(model: PrunedVLM) -> None:
    """A prompt without images keeps all of nothing, and one pruned by its evidence is not the pruner's doing."""
    data = gl.GlyphVQA("train", 6, image_size=224)
    samples = [data[0], dataclasses.replace(data[3], images=[])]
    objective = prepared(model, train=["pruner"], retention=0.25, rewards=REWARDS)
    seen: list[Tensor] = []
    objective._set_price = seen.append  # type: ignore[method-assign]
    rollout, logs = objective.roll_out(model, model.backbone.collate(samples))
    assert rollout.retention.isnan().tolist() == [False] * 4 + [True] * 4
    assert torch.equal(seen[0], rollout.retention[:4]) and logs["hard_retention"] == seen[0].mean()


def test_unknown_rewards_belong_to_no_group() -> None:
    rewards = torch.tensor([[1.0, 1.0, torch.nan, torch.nan], [0.0, 2.0, torch.nan, 1.0]])
    torch.testing.assert_close(group_deviation(rewards, ~rewards.isnan()), torch.tensor([0.0, 1.0]))


def test_supervised_training_lowers_its_loss_and_leaves_the_pruner(model: PrunedVLM, batch: Batch) -> None:
    objective = Supervised()
    objective.prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in objective.trainable))
    assert not any(parameter.requires_grad for parameter in model.pruner.parameters())  # type: ignore[union-attr]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = objective.step(model, batch)
    first.loss.backward()
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    assert objective.step(model, batch).loss < first.loss
    # The same answers, decoded from the hard-pruned prefill as evaluation does it.
    expected = answer_log_probs(model, prefill(model, batch), batch)
    got = model.replay(batch, batch.answer_ids, batch.answer_mask).logits.log_softmax(-1)
    mask = batch.answer_mask.bool()
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_bernoulli_log_probs() -> None:
    scores, drawn = torch.tensor([0.0, 2.0, 2.0, -200.0]), torch.tensor([True, True, False, False])
    expected = torch.tensor([0.5, 0.880797, 0.119203, 1.0])
    torch.testing.assert_close(bernoulli_log_probs(scores, drawn).exp(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "at least 2"),
        ({"group_size": 6, "prefills": 4}, "multiple of `prefills`"),
        ({"train": ["pruner"], "prefills": 1}, "one alone has no rival"),
        ({"train": ["pruner"], "rollout_masks": "oracle"}, "it has to decide"),
        ({"train": ["vision"]}, "Expected `train`"),
        ({"train": ["pruner"], "lora": LoRA()}, "only where `train`"),
        ({"forward": "embeddings"}, "old: replay"),
        ({"lora": LoRA(dropout=0.1)}, "old: replay"),
        ({"temperature": 0.0}, "positive"),
        ({"iterations": 0}, "`iterations` to be at least 1"),
        ({"retention": 0.05, "rewards": {"pruning_rate": 1.0}}, "the pruner to be trained"),
        ({"retention": 0.05, "train": ["pruner"]}, "a reward `pruning_rate` of positive weight"),
        ({"retention": 0.0, "train": ["pruner"], "rewards": {"pruning_rate": 1.0}}, "in \\(0, 1\\]"),
        ({"rewards": {"nonsense": 1.0}}, "Expected a reward out of"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPO(**options)
