"""A method's own code as a policy: what it is given, and what it may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import visual_tokens
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.core.visual_tokens import VisionAttention, VisionKeys
from glimpse_lightning.policies import FromFunction, MaxMin

BATCH = [[(1, 3, 4)], [], [(1, 2, 2), (2, 3, 2)]]


def test_a_function_is_given_what_its_parameters_ask_for_image_by_image() -> None:
    seen: list[dict[str, Any]] = []

    def all_of_it(features, scores, attention, vision, vision_keys, keys, text, question, grid, budget, alpha, beta=2):  # type: ignore[no-untyped-def]
        seen.append({**locals()})
        return [0]

    policy = FromFunction(all_of_it, 0.5, arguments={"alpha": 3}, layer=1)
    tokens = visual_tokens(BATCH, policy.requires)
    assert tokens.text is not None and tokens.keys is not None
    scores = torch.arange(len(tokens)).float()
    keep = policy.select(scores, tokens)
    assert keep.nonzero()[:, 0].tolist() == [0, 12, 16]
    starts, sizes, samples = (0, 12, 16), (12, 4, 12), (0, 2, 2)
    for given, start, size, sample in zip(seen, starts, sizes, samples, strict=True):
        here = slice(start, start + size)
        whole = {
            "features": tokens.hidden, "scores": scores, "keys": tokens.keys, "vision": tokens.vision[1],
            "attention": tokens.vision[VisionAttention(1, queries="class")][:, 0],
            "vision_keys": tokens.vision[VisionKeys(1)],
        }  # fmt: skip
        assert all(torch.equal(given[name], value[here]) for name, value in whole.items())
        assert torch.equal(given["text"], tokens.text[tokens.text_sample == sample])
        assert given["question"] == tokens.questions[sample]
        assert (given["budget"], given["alpha"], given["beta"]) == (size // 2, 3, 2)
    assert [given["grid"] for given in seen] == [(1, 3, 4), (1, 2, 2), (2, 3, 2)]


def test_nothing_is_computed_that_the_function_does_not_ask_for() -> None:
    assert FromFunction(lambda features, budget: [0], 0.5).requires == gl.Requires()
    assert FromFunction(lambda attention: [0], 0.5).requires.vision_layers == (VisionAttention(-2, queries="class"),)


def test_a_function_cannot_change_the_tokens() -> None:
    def greedy(features: Tensor, scores: Tensor, budget: int) -> range:
        features.zero_()
        scores.fill_(-torch.inf)
        return range(budget)

    tokens, scores = visual_tokens(BATCH), torch.ones(28)
    before = tokens.hidden.clone()
    FromFunction(greedy, 0.5).select(scores, tokens)
    assert torch.equal(tokens.hidden, before) and torch.equal(scores, torch.ones(28))


def test_a_sample_may_be_the_unit() -> None:
    sizes: list[int] = []

    def first(features: Tensor, budget: int) -> range:
        sizes.append(len(features))
        return range(budget)

    FromFunction(first, 0.25, per="sample").select(torch.ones(28), visual_tokens(BATCH))
    assert sizes == [12, 16]


@pytest.mark.parametrize(
    "answer",
    [[3, 0], (0, 3), torch.tensor([3, 0]), torch.tensor([0, 3], dtype=torch.int32), {0, 3},
     [True, False, False, True], torch.tensor([True, False, False, True]), iter([3, 0])],
    ids=["list", "tuple", "tensor", "int32", "set", "mask", "boolean tensor", "iterator"],
)  # fmt: skip
def test_indices_and_masks_of_any_kind_are_understood(answer: Any) -> None:
    keep = FromFunction(lambda: answer, 0.5).select(torch.ones(4), visual_tokens([[(1, 2, 2)]]))
    assert keep.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "returned none"),
        ([4], "from 0 to 3, but the function returned 4"),
        ([-1, 2], "returned -1"),
        ([2, 2], "returned 2 twice"),
        ([0.5], "whole numbers"),
        (torch.zeros(2, 2, dtype=torch.long), r"shape \[2, 2\]"),
        ([True, False], r"mask of the image's 4 tokens, but got one of shape \[2\]"),
    ],
)
def test_other_answers_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(gl.GlimpseError, match=message):
        FromFunction(lambda: answer, 0.5).select(torch.ones(4), visual_tokens([[(1, 2, 2)]]))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda attentions: [0], {}, "`attentions` that nothing is given to. Did you mean attention?"),
        (lambda features, ratio: [0], {}, "`ratio` that nothing is given to"),
        (lambda features: [0], {"ratio": 1}, "no parameter `ratio`"),
        ("their_code.select", {}, "to be a function, but got 'their_code.select'"),
        (max, {}, "cannot be read; wrap it in a `def`"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_at_once(
    function: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(gl.GlimpseError, match=message):
        FromFunction(function, 0.5, arguments=arguments)


def test_a_grid_with_holes_is_refused() -> None:
    tokens = visual_tokens([[(1, 2, 2)]]).subset(torch.tensor([True, True, True, False]))
    policy = FromFunction(lambda grid: [0], 0.5)
    with pytest.raises(gl.GlimpseError, match="an earlier stage has dropped"):
        policy.select(torch.ones(3), tokens)
    policy = FromFunction(lambda grid: [0], 0.5, per="sample")
    with pytest.raises(gl.GlimpseError, match="a sample's images as one"):
        policy.select(torch.ones(4), visual_tokens([[(1, 2, 2)]]))


def max_min(features: Tensor, budget: int) -> list[int]:
    """DivPrune for one image, as its formula reads."""
    distance = 1 - torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(features, dim=1).T
    chosen = [int((distance + 2 * torch.eye(len(features))).min(1).values.argmax())]
    while len(chosen) < budget:
        chosen.append(int(distance[:, chosen].min(1).values.index_fill(0, torch.tensor(chosen), -1.0).argmax()))
    return chosen


@pytest.mark.parametrize("after_layer", [-1, 2])
def test_a_method_answers_as_its_port_does(after_layer: int) -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    batch = backbone.collate([gl.GlyphVQA("test")[index] for index in range(3)])
    theirs, ours = (
        gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(after_layer, *parts)])).prefill(**batch.inputs)
        for parts in (gl.from_function(max_min, 0.2), (gl.scorers.FixedRatio(), MaxMin(0.2)))
    )
    assert torch.equal(theirs.keep[0], ours.keep[0])
    assert torch.equal(theirs.logits, ours.logits)


def test_tokens_that_are_gone_stay_gone() -> None:
    tokens = visual_tokens([[(1, 2, 2)]])
    scores = torch.tensor([1.0, -torch.inf, 1.0, 1.0])
    keep = FromFunction(lambda budget: range(budget), 0.5).select(scores, tokens)
    assert keep.tolist() == [True, False, False, False]
