"""VIP beyond the reference's numbers: scope of attention, several layers and tokens, deep supervision, bad settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens

from glimpse_lightning.core.segments import Padding
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.latency.memory import peak_bytes
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import VIP, UpstreamOptions
from glimpse_lightning.scorers.vip_network import ConditionedAttention


def vip(after_layer: int = 3, **kwargs: Any) -> VIP:
    torch.manual_seed(0)
    made = VIP(attention_dim=32, condition_dim=48, **kwargs)
    made.build(FACTS, after_layer)
    return made.eval()


def seen_by(scorer: VIP, tokens: VisualTokens, index: int) -> list[int]:
    """Tokens whose attention feature reaches the logit of token ``index``."""
    ((name, probe),) = tokens.probes.items()
    features = probe.clone().requires_grad_()
    scorer(replace(tokens, probes={name: features}))[index].backward()
    assert features.grad is not None
    return (features.grad.abs().sum(-1) > 0).nonzero().flatten().tolist()


def test_tokens_see_their_own_image_and_frame() -> None:
    scorer = vip()
    tokens = visual_tokens([[(2, 2, 3), (1, 2, 2)], [(1, 1, 3)]], scorer.requires)
    assert seen_by(scorer, tokens, 1) == list(range(6))
    assert seen_by(scorer, tokens, 7) == list(range(6, 12))
    assert seen_by(scorer, tokens, 13) == list(range(12, 16))
    assert seen_by(scorer, tokens, 18) == list(range(16, 19))


def test_window() -> None:
    scorer = vip(upstream={"window": 2})
    tokens = visual_tokens([[(1, 3, 4)]], scorer.requires)
    assert seen_by(scorer, tokens, 0) == [0, 1, 4, 5]
    assert seen_by(scorer, tokens, 6) == [2, 3, 6, 7]
    assert seen_by(scorer, tokens, 9) == [8, 9]


def test_dropped_tokens_are_seen_by_nobody() -> None:
    scorer = vip()
    tokens = visual_tokens([[(1, 3, 3)], [(1, 2, 2)]], scorer.requires)
    keep = torch.arange(len(tokens)) % 2 == 0
    left = tokens.subset(keep)
    assert seen_by(scorer, left, 0) == [0, 1, 2, 3, 4]
    assert not torch.allclose(scorer(left), scorer(tokens)[keep], atol=1e-3)


def test_place_matters() -> None:
    scorer = vip()
    tokens = visual_tokens([[(1, 3, 3)]], scorer.requires)
    turned = replace(tokens, position=tokens.position[:, [0, 2, 1]])
    assert not torch.allclose(scorer(tokens), scorer(turned), atol=1e-4)


def test_deep_supervision() -> None:
    scorer = vip(upstream={"deep_supervision": True}, vision_layers=[3, 1])
    tokens = visual_tokens([[(1, 2, 3)], [(1, 4, 1)]], scorer.requires)
    rows = scorer.forward_rows(tokens)
    assert rows.shape == (2, 10)
    assert torch.equal(rows[-1], scorer(tokens))
    assert not torch.allclose(rows[0], rows[1])
    assert vip().forward_rows(visual_tokens([[(1, 2, 3)]], vip().requires)).shape == (1, 6)


def test_several_layers_and_glimpse_tokens() -> None:
    glimpse = UpstreamOptions(glimpse_length=2, glimpse_layers=[0, 2])
    scorer = vip(attention_layers=[1, 3], attention="log_softmax", upstream=glimpse)
    probe = scorer.requires.probes["glimpse"]
    assert (probe.layers, probe.query, probe.scale) == ((1, 3), "glimpse", "log_softmax")
    assert scorer.network.attn_in_proj.in_features == 8
    assert scorer.glimpse is not None
    vectors = scorer.glimpse()
    assert list(vectors) == [0, 2]
    assert vectors[0].shape == (2, 64)


def test_all_layers_up_to_the_stage() -> None:
    assert vip(after_layer=2, attention_layers="all").attended == (0, 1, 2)
    assert vip(after_layer=2).attended == (2,)
    with pytest.raises(GlimpseError, match="after_layer"):
        vip(after_layer=-1, attention_layers="all")


def test_published_defaults() -> None:
    scorer = VIP()
    scorer.build(replace(FACTS, num_layers=28, num_heads=28, hidden_size=3584, vision_layers=32), 18)
    assert scorer.requires.vision_layers == (31, 23, 15, 7)
    assert scorer.requires.probes["glimpse"].layers == (18,)
    shapes = {name: tuple(p.shape) for name, p in scorer.named_parameters()}
    assert shapes["network.layers.3.attn.q_proj.weight"] == (768, 768)
    assert shapes["network.attn_in_proj.weight"] == (256, 28)
    assert shapes["glimpse.embeddings"] == (28, 1, 3584)
    assert [name for name in shapes if name.startswith("network.attn_out_projs")] == [
        "network.attn_out_projs.3.weight",
        "network.attn_out_projs.3.bias",
    ]


def test_initial_values() -> None:
    scorer = vip()
    for name, parameter in scorer.network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.5 * bound < parameter.abs().max() <= bound
    assert scorer.glimpse is not None
    assert scorer.glimpse.embeddings.std().item() == pytest.approx(0.02, rel=0.2)


def test_scale_of_the_glimpse() -> None:
    for scale in (1.0, 0.07):
        glimpse = vip(glimpse_scale=scale).glimpse
        assert glimpse is not None
        vector = glimpse()[0]
        assert vector.square().mean().sqrt().item() == pytest.approx(scale, rel=1e-2)


def test_dropout_is_of_the_glimpse_in_training_only() -> None:
    glimpse = vip(dropout=0.5).glimpse
    assert glimpse is not None

    assert torch.equal(glimpse()[0], glimpse()[0])
    glimpse.train()
    assert (glimpse()[0] == 0).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vip(-1), "`after_layer` to be at least 0 for VIP"),
        (lambda: vip(2, attention_layers=[3]), "`attention_layers` to lie between 0 and .* = 2"),
        (lambda: vip(vision_layers=[4]), r"4 blocks of this model's vision tower \(0 to 3\), but got \[4\]"),
        (lambda: vip(upstream={"glimpse_layers": [1]}), "contain layer 0"),
        (lambda: VIP(heads=5), "divisible by `heads` = 5"),
        (lambda: UpstreamOptions(window=0), "`window` to be None"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_stage_is_an_error_for_users() -> None:
    with pytest.raises(GlimpseError):
        vip(-1)


@pytest.mark.parametrize(
    "part", [{"query": "last"}, {"vision_condition": False}, {"rotary": False}, {"fusion": False}], ids=str
)
def test_vip_without_one_of_its_parts(part: dict[str, Any]) -> None:
    scorer = vip(vision_layers=[3, 1], **part)
    requires = scorer.requires
    assert (scorer.glimpse is None) == ("query" in part)
    assert {probe.query for probe in requires.probes.values()} == {part.get("query", "glimpse")}
    assert requires.vision_layers == (() if {"vision_condition", "fusion"} & set(part) else (3, 1))
    tokens = visual_tokens([[(1, 3, 3)], [(1, 1, 2)]], requires)
    rows = scorer.forward_rows(tokens)
    assert rows.shape == (1, 11)
    rows.sum().backward()
    turned = replace(tokens, position=tokens.position[:, [0, 2, 1]])
    blind = bool({"rotary", "fusion"} & set(part))
    assert torch.allclose(scorer(tokens), scorer(turned), atol=1e-5) == blind
    assert len(seen_by(scorer, tokens, 0)) == (1 if "fusion" in part else 9)


def test_a_query_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="'glimpse', 'last', 'text', several or 'both'; got 'first'"):
        VIP(query="first")  # type: ignore[arg-type]
    for query in ([], ["last", "last"], ["last", "first"]):
        with pytest.raises(ValueError, match="several or 'both'"):
            VIP(query=query)  # type: ignore[arg-type]


def test_attention_never_holds_the_map_of_all_pairs() -> None:
    """Twice as many tokens take about twice as much memory, in fp32 on the CPU too."""
    attention = ConditionedAttention(dim=32, condition_dim=32, heads=2).requires_grad_(False)

    def peak(tokens: int) -> int:
        one_image = Padding(torch.zeros(tokens, dtype=torch.long))
        turn = torch.ones(tokens, 1, 32), torch.zeros(tokens, 1, 32)
        inputs = torch.zeros(tokens, 32), torch.zeros(tokens, 32), turn
        return peak_bytes(lambda: attention(*inputs, one_image), torch.device("cpu"))

    assert peak(1600) < 2.2 * peak(800)


@pytest.mark.parametrize(
    ("query", "read"),
    [("both", ["glimpse", "last"]), (["last", "text"], ["last", "text"]), ("text", ["text"]),
     (["text", "glimpse"], ["text", "glimpse"])],
)  # fmt: skip
def test_vip_that_reads_other_rows(query: Any, read: list[str]) -> None:
    scorer = vip(query=query, vision_layers=[3, 1])
    probes = scorer.requires.probes
    assert [probe.query for probe in probes.values()] == list(probes) == read
    assert (scorer.glimpse is None) == ("glimpse" not in read)
    assert {probe.scale for probe in probes.values() if probe.query == "text"} <= {"log_softmax"}
    tokens = visual_tokens([[(1, 3, 3)], [(1, 1, 2)]], scorer.requires)
    for name in probes:
        changed = {**tokens.probes, name: tokens.probes[name] + torch.randn_like(tokens.probes[name])}
        assert not torch.allclose(scorer(replace(tokens, probes=changed)), scorer(tokens))


def test_inputs_are_standardised_as_the_first_batch_was() -> None:
    scorer = vip(standardise=True, vision_layers=[3, 1])
    tokens = visual_tokens([[(1, 8, 8)], [(1, 4, 4)]], scorer.requires)
    wide = replace(tokens, vision={layer: 50 * value + 9 for layer, value in tokens.vision.items()})
    assert (scorer.train()(wide) == 0).all()  # untrained
    vision = torch.cat([wide.vision[layer] for layer in (3, 1)], -1)
    scaled = scorer.scales["vision"](vision)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(vision.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(vision.shape[1]), rtol=1e-4, atol=1e-4)
    again = scorer.scales["vision"](vision[:5])  # later batches do not move it, nor does their size
    torch.testing.assert_close(again, scaled[:5])
    other = vip(standardise=True, vision_layers=[3, 1])
    other.load_state_dict(scorer.state_dict())
    torch.testing.assert_close(other.train().scales["vision"](vision[:5]), again)
    fresh = vip(standardise=True, vision_layers=[3, 1]).eval()
    assert torch.equal(fresh.scales["vision"](vision), vision)  # nothing was measured, and evaluation measures nothing
    scorer.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(scorer.scales["vision"](vision), scaled)  # nor had what it now holds: it measures anew
