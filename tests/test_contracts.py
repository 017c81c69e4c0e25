"""What every scorer, policy and reducer of the package must do; a new one is tested by being there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from factories import FACTS, Grid, visual_tokens
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning import policies, reducers, scorers
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.policies import Policy
from glimpse_lightning.pruner.files import init_args
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.reducers import Reducer
from glimpse_lightning.scorers import Scorer
from glimpse_lightning.scorers.vision_text_rank import information
from glimpse_lightning.testing import SIZES


def first(features: Tensor, budget: int) -> range:
    """A method's own code."""
    return range(budget)


# Arguments of classes that cannot do without; all others are built with their defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "VIP": {"attention_dim": 32, "condition_dim": 48},
    "TopK": {"count": 3},
    "KeepRatio": {"ratio": 0.3},
    "TopP": {"p": 0.5},
    "MaxMin": {"ratio": 0.3},
    "MMR": {"ratio": 0.3},
    "Coverage": {"ratio": 0.3},
    "DPP": {"ratio": 0.3},
    "DominantContextual": {"ratio": 0.6},
    "VisPruner": {"ratio": 0.4, "step": 2},
    "BipartiteMatching": {"ratio": 0.3},
    "HiPrune": {"ratio": 0.5, "anchors": 0.8, "object_layer": 1},
    "CropRatio": {"ratio": 0.4, "crops": 3, "fill": True},
    "DART": {"ratio": 0.6},
    "LocalGlobal": {"ratio": 0.5, "window": 2, "shallow_layer": 0},
    "Recycled": {"ratio": 0.3, "per_cluster": 2},
    "FromFunction": {"function": first, "ratio": 0.3},
    "LogisticRatio": {"stage": 1, "after_layers": [0, 3], "retention": 0.5},
}
WITHOUT_BUDGET = {"Threshold", "TopP", "Outliers", "GridCells", "FromFunction", "PixelPrune"}
"""Policies that decide themselves how many tokens stay."""
ON_TOP = {"Recycled"}
"""Policies whose docstring says that they keep more than their budget."""
BATCHES: dict[str, list[list[Grid]]] = {
    "empty": [],
    "no images": [[], []],
    "one token": [[(1, 1, 1)]],
    "one token each": [[(1, 1, 1), (1, 1, 1)], [(1, 1, 1)]],
    "several": [[(1, 3, 4)], [], [(1, 2, 2), (2, 3, 2)], [(1, 5, 1)]],
}
AFTER = 3


def components(module: Any, base: type) -> list[type]:
    kinds = [getattr(module, name) for name in module.__all__]
    concrete = {kind for kind in below(base) if not inspect.isabstract(kind)}
    found = [kind for kind in kinds if kind in concrete]
    inside = {kind for kind in concrete if kind.__module__.startswith(f"{module.__name__}.")}
    assert inside <= set(found), f"not in {module.__name__}.__all__: {inside - set(found)}"
    return found


def below(base: type) -> set[type]:
    return {kind for direct in base.__subclasses__() for kind in (direct, *below(direct))}


SCORERS = components(scorers, Scorer)
POLICIES = components(policies, Policy)
REDUCERS = components(reducers, Reducer)


def make(kind: type) -> Any:
    return kind(**ARGUMENTS.get(kind.__name__, {}))


def scorer_of(kind: type) -> Scorer:
    torch.manual_seed(0)
    scorer: Scorer = make(kind)
    scorer.build(FACTS, AFTER)
    return scorer.eval()


def score(scorer: Scorer, batch: list[list[Grid]], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return scorer(visual_tokens(batch, scorer.requires, **kwargs))


def by_sample(values: Tensor, batch: list[list[Grid]]) -> list[Tensor]:
    return list(values.split([sum(t * h * w for t, h, w in sample) for sample in batch]))


def test_there_are_components() -> None:
    assert {"VIP", "AttentionRank", "FixedRatio", "Random"} <= {kind.__name__ for kind in SCORERS}
    assert {"Threshold", "TopK", "KeepRatio", "TopP"} <= {kind.__name__ for kind in POLICIES}
    assert {"Drop"} <= {kind.__name__ for kind in REDUCERS}


@pytest.mark.parametrize("kind", [*SCORERS, *POLICIES, *REDUCERS])
def test_public_and_documented(kind: type) -> None:
    assert "._" not in kind.__module__
    assert kind.__doc__


@pytest.mark.parametrize("kind", [*SCORERS, *POLICIES, *REDUCERS, PruneStage])
def test_arguments_that_name_layers_take_shares(kind: Any) -> None:
    """Else a recipe that names them would mean another part of a deeper model."""
    blocks = [
        hint for union in get_type_hints(kind.__init__).values() for hint in get_args(union) if is_dataclass(hint)
    ]
    arguments = [*inspect.signature(kind).parameters, *(field.name for block in blocks for field in fields(block))]
    assert {name for name in arguments if "layer" in name} == set(kind.layer_arguments)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", SCORERS)
def test_scorer_shapes(kind: type, name: str) -> None:
    scorer = scorer_of(kind)
    tokens = visual_tokens(BATCHES[name], scorer.requires)
    scores = scorer(tokens)
    assert scores.shape == (len(tokens),)
    assert scores.is_floating_point()
    assert not scores.isnan().any()
    if any(p.requires_grad for p in scorer.parameters()):
        scores.sum().backward()  # with no tokens, too: a rank without images must not hang the others


@pytest.mark.parametrize("kind", [kind for kind in SCORERS if next(scorer_of(kind).parameters(), None) is not None])
def test_learned_scorers_have_finite_gradients_everywhere(kind: type) -> None:
    scorer = scorer_of(kind)
    tokens = visual_tokens(BATCHES["several"], scorer.requires)
    weight = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
    (scorer(tokens) * weight).sum().backward()
    in_glimpse = {id(p) for p in scorer.glimpse.parameters()} if scorer.glimpse is not None else set()
    for name, parameter in scorer.named_parameters():
        if id(parameter) in in_glimpse:  # they act through the engine's side stream, not here
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(float(p.grad.abs().sum()) > 0 for p in scorer.parameters() if p.grad is not None) >= 2


@pytest.mark.parametrize("kind", SCORERS)
def test_scorer_is_deterministic_and_takes_bf16(kind: type) -> None:
    scorer, batch = scorer_of(kind), BATCHES["several"]
    scores = score(scorer, batch)
    assert torch.equal(scores, score(scorer, batch))
    torch.testing.assert_close(score(scorer, batch, dtype=torch.bfloat16).float(), scores, atol=0.1, rtol=0.1)
    assert scores.unique().numel() > 3
    assert not score(scorer.to(torch.bfloat16), batch, dtype=torch.bfloat16).isnan().any()


@pytest.mark.parametrize("kind", SCORERS)
def test_scorer_ignores_batch_mates_and_their_order(kind: type) -> None:
    scorer, batch, keys = scorer_of(kind), BATCHES["several"], [7, 8, 9, 10]
    together = by_sample(score(scorer, batch, keys=keys), batch)
    turned = by_sample(score(scorer, batch[::-1], keys=keys[::-1]), batch[::-1])[::-1]
    for index, sample in enumerate(batch):
        alone = score(scorer, [sample], keys=[keys[index]])
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned[index], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llava_next"])  # the latter two have windows
@pytest.mark.parametrize("kind", SCORERS)
def test_a_later_stage_scores_in_training_as_in_a_prefill(kind: type, family: str) -> None:
    """Where an earlier stage has closed tokens altogether, the others' scores are those that they have without them."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    torch.manual_seed(1)
    half = policies.KeepRatio(0.5)
    model = gl.PrunedVLM(backbone, Pruner([PruneStage(0, scorers.Random(), half), PruneStage(2, make(kind), half)]))
    for parameter in model.pruner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs, samples = backbone.example_inputs(SIZES), len(SIZES)
    known = family == "qwen2_5_vl"  # what part of an image a crop shows is not
    boxes = [[[(2.0, 2.0, 6.0, 8.0)] for _ in sizes] if known else None for sizes in SIZES]
    out = model.prefill(keys=torch.arange(samples), questions=["what"] * samples, boxes=boxes, **inputs)
    ids = torch.arange(3 * samples).view(samples, 3)
    asked = [gl.Sample(str(key), key, "what", ["x"], boxes=some) for key, some in enumerate(boxes)]
    batch = Batch(inputs, ids, torch.ones_like(ids), torch.arange(samples), torch.ones(samples), asked)
    gates = iter([torch.where(keep, 0.0, -torch.inf) for keep in out.keep])
    with torch.no_grad():
        scores = model.distill(batch, lambda *_: next(gates)).stages[1].scores
    assert len(scores) == len(out.keep[0])  # closed ones are scored, too: a stage may learn to keep them
    torch.testing.assert_close(scores[out.keep[0]], out.scores[1][out.keep[0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", BATCHES)
def test_policy(kind: type, name: str) -> None:
    policy = make(kind)
    tokens = visual_tokens(BATCHES[name], policy.requires)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    keep = policy.select(scores, tokens)
    assert keep.shape == scores.shape
    assert keep.dtype == torch.bool
    assert torch.equal(scores, before)
    assert torch.equal(keep, policy.select(scores, tokens))
    assert policy.select(scores.bfloat16(), tokens).shape == scores.shape
    if not policy.may_keep_nothing:
        for index in range(tokens.num_samples):
            assert keep[tokens.sample == index].any() or not (tokens.sample == index).any()


def budgets(policy: Any, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """``(group [V], most tokens of each group)``, from what the policy's arguments say."""
    group, total = tokens.groups(policy.per)
    if isinstance(policy, policies.LogisticRatio):
        ratio = policy.ratios(FACTS.num_layers, information(tokens))[policy.stage]
        most = (ratio * total.double() + 1e-9).floor().long()
    elif getattr(policy, "count", None) is not None:
        most = total.new_full(total.shape, policy.count)
    else:
        most = (policy.ratio * total.double() + 1e-9).floor().long()
    return group, most.clamp(min=getattr(policy, "min_tokens", 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind.__name__ not in WITHOUT_BUDGET])
@pytest.mark.parametrize("name", BATCHES)
def test_policy_keeps_its_budget(kind: type, name: str, dtype: torch.dtype) -> None:
    """Exactly it, where there are as many tokens that may be kept; never one whose score is -inf."""
    policy = make(kind)
    tokens = visual_tokens(BATCHES[name], policy.requires, dtype=dtype)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(1)).to(dtype)
    for gone in (torch.zeros(len(tokens), dtype=torch.bool), torch.arange(len(tokens)) % 4 == 1):
        keep = policy.select(scores.masked_fill(gone, -torch.inf), tokens)
        assert not (keep & gone).any()
        group, most = budgets(policy, tokens)
        kept = torch.bincount(group[keep], minlength=len(most))
        allowed = torch.bincount(group[~gone], minlength=len(most)).minimum(most)
        assert (kept >= allowed).all() if kind.__name__ in ON_TOP else torch.equal(kept, allowed)


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind.__name__ in WITHOUT_BUDGET])
def test_policies_without_a_budget_never_keep_what_is_gone(kind: type) -> None:
    policy = make(kind)
    tokens = visual_tokens(BATCHES["several"], policy.requires)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(1))
    scores[::4] = -torch.inf
    assert not policy.select(scores, tokens)[::4].any()


@pytest.mark.parametrize("kind", POLICIES)
def test_policy_ignores_batch_mates(kind: type) -> None:
    policy, batch = make(kind), BATCHES["several"]
    tokens = visual_tokens(batch, policy.requires)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
    alone = [
        policy.select(part, visual_tokens([sample], policy.requires, keys=[100 + index]))
        for index, (part, sample) in enumerate(zip(by_sample(scores, batch), batch, strict=True))
    ]
    assert torch.equal(policy.select(scores, tokens), torch.cat(alone))


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", BATCHES)
def test_reducer(kind: type, name: str) -> None:
    reducer = make(kind)
    tokens = visual_tokens(BATCHES[name], reducer.requires)
    keep = torch.arange(len(tokens)) % 3 == 0
    for mask in (keep, ~keep, torch.zeros_like(keep), torch.ones_like(keep)):
        tokens = merging(tokens, mask)
        before = tokens.hidden.clone()
        out = reducer.reduce(tokens.hidden, mask, tokens)
        assert out.shape == (int(mask.sum()), FACTS.hidden_size)
        assert not out.isnan().any()
        assert torch.equal(tokens.hidden, before)
        assert torch.equal(out, reducer.reduce(tokens.hidden, mask, tokens))
        half = replace(tokens, hidden=tokens.hidden.bfloat16())
        assert reducer.reduce(half.hidden, mask, half).dtype == torch.bfloat16


def merging(tokens: VisualTokens, keep: Tensor) -> VisualTokens:
    """As the engine hands tokens to a reducer."""
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
    return replace(tokens, scores=scores, targets=keep)


@pytest.mark.parametrize("kind", REDUCERS)
def test_reducer_ignores_batch_mates(kind: type) -> None:
    reducer, batch = make(kind), BATCHES["several"]
    tokens = visual_tokens(batch, reducer.requires)
    tokens = merging(tokens, torch.arange(len(tokens)) % 3 == 0)
    assert tokens.targets is not None
    together = reducer.reduce(tokens.hidden, tokens.targets, tokens)
    alone = []
    for index, sample in enumerate(batch):
        mine = tokens.sample == index
        single = visual_tokens([sample], reducer.requires, keys=[100 + index])
        assert tokens.scores is not None
        single = replace(single, scores=tokens.scores[mine], targets=tokens.targets[mine])
        alone.append(reducer.reduce(single.hidden, tokens.targets[mine], single))
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("kind", POLICIES)
def test_merge_targets_are_kept(kind: type) -> None:
    policy = make(kind)
    for batch in BATCHES.values():
        tokens = visual_tokens(batch, policy.requires)
        scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
        keep = policy.select(scores, tokens)
        targets = policy.merge_targets(scores, keep, tokens)
        assert targets.dtype == torch.bool
        assert not (targets & ~keep).any()


def rebuild(scorer: Any = None, policy: Any = None, reducer: Any = None) -> Pruner:
    pruner = Pruner([PruneStage(AFTER, scorer or scorers.Random(), policy or policies.TopK(2), reducer)])
    pruner.build(FACTS)
    return pruner


NOT_SAVED = {policies.FromFunction}
"""Parts with arguments that are no data."""
ROLES: list[tuple[str, type]] = [
    *(("scorer", kind) for kind in SCORERS),
    *(("policy", kind) for kind in POLICIES),
    *(("reducer", kind) for kind in REDUCERS),
]


@pytest.mark.parametrize(("role", "kind"), ROLES, ids=lambda value: getattr(value, "__name__", value))
def test_saved_and_loaded(role: str, kind: type, tmp_path: Path) -> None:
    part = make(kind)
    saved = rebuild(**{role: part}).eval()
    if kind in NOT_SAVED:
        with pytest.raises(gl.GlimpseError, match="so that it can be saved"):
            save_pruner(saved, tmp_path / "pruner")
        return
    loaded = load_pruner(save_pruner(saved, tmp_path / "pruner")).eval()
    copy = getattr(loaded.stages[0], role)
    assert type(copy) is kind
    assert init_args(copy) == init_args(part)
    scorer: Callable[..., Tensor] = loaded.stages[0].scorer  # type: ignore[assignment]
    original: Callable[..., Tensor] = saved.stages[0].scorer  # type: ignore[assignment]
    tokens = visual_tokens(BATCHES["several"], saved.stages[0].requires)  # type: ignore[union-attr, arg-type]
    scores = original(tokens).detach()
    assert torch.equal(scorer(tokens), scores)
    one, two = saved.stages[0], loaded.stages[0]
    keep = one.policy.select(scores, tokens)
    assert torch.equal(two.policy.select(scores, tokens), keep)
    tokens = merging(tokens, keep)
    assert torch.equal(two.reducer.reduce(tokens.hidden, keep, tokens), one.reducer.reduce(tokens.hidden, keep, tokens))
