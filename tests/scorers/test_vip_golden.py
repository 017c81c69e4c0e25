"""VIP against the reference's numbers (tests/golden)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens, with_inputs
from golden_numbers import CASES, GOLDEN, cases, tensors
from torch import Tensor

from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.policies import Threshold
from glimpse_lightning.scorers import VIP

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def golden_vip(folder: str, facts: ModelFacts = FACTS, **kwargs: Any) -> VIP:
    vip = VIP(vision_layers=[3, 2, 1], attention_dim=32, condition_dim=48, dropout=0.0, **kwargs)
    vip.build(facts, after_layer=3)
    saved = torch.load(GOLDEN / folder / "new_modules_gp.pt", weights_only=True)
    vip.network.load_state_dict(saved["attn_fuser"])
    assert vip.glimpse is not None
    vip.glimpse.load_state_dict(
        {
            "embeddings": saved["learnable_embeddings"],
            **{f"proj.{name}": value for name, value in saved["le_proj"].items()},
            **{f"norm.{name}": value for name, value in saved["le_norm"].items()},
        }
    )
    return vip.eval()


def case_tokens(name: str, vip: VIP) -> VisualTokens:
    case = tensors(f"cases/{name}")
    # d_* cases store no vision states of their own; their images are those of these two cases.
    states = tensors("cases/c_batch2_leftpad" if len(case["vip_split"]) == 2 else "cases/a_single")["vip_cond"]
    tokens = visual_tokens([[(1, int(h), int(w))] for h, w in case["vip_attn_grid"]])
    vision = dict(zip(vip.requires.vision_layers, states, strict=True))
    return with_inputs(tokens, {"glimpse": case["glimpse_attn"].flatten(1)}, vision)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_masks(name: str) -> None:
    vip, case = golden_vip("new_modules/main"), tensors(f"cases/{name}")
    tokens = case_tokens(name, vip)
    logits = vip(tokens)
    torch.testing.assert_close(logits, case["vip_logits"][-1], **CLOSE)
    overrides = cases()[name]["overrides"]
    policy = Threshold(
        threshold=overrides.get("reduce_threshold", 0.5),
        max_ratio=overrides.get("max_remain_ratio"),
        min_tokens=overrides.get("min_remain_num", 1),
    )
    assert torch.equal(policy.select(logits, tokens), case["keep_mask"])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_glimpse_vectors(name: str) -> None:
    glimpse = golden_vip("new_modules/main").glimpse
    assert glimpse is not None
    vectors = torch.stack(list(glimpse().values()))
    torch.testing.assert_close(vectors, tensors(f"cases/{name}")["glimpse_vectors"], **CLOSE)


@pytest.mark.parametrize("name", ["single", "max_remain_ratio"])
@torch.no_grad()
def test_llava(name: str) -> None:
    facts = ModelFacts(6, 4, 4, 16, 64, 96, 1e-5, vision_layers=4, vision_hidden_size=32, model_type="llava")
    vip = golden_vip("llava/new_modules", facts, attention="log_softmax")
    case = tensors(f"llava/cases/{name}")
    tokens = with_inputs(
        visual_tokens([[(1, 5, 5)]], facts=facts),
        {"glimpse": case["glimpse_attn"][0]},
        dict(zip(vip.requires.vision_layers, case["vip_cond"][:, 0], strict=True)),
    )
    logits = vip(tokens)
    torch.testing.assert_close(logits, case["vip_logits"][0, -1], **CLOSE)
    policy = Threshold(max_ratio=0.111 if name == "max_remain_ratio" else None)
    assert torch.equal(policy.select(logits, tokens), case["keep_mask"][0])


def gradients(vip: VIP) -> dict[str, Tensor]:
    return {name: p.grad for name, p in vip.network.named_parameters() if p.grad is not None}


def test_gradients_reach_every_weight() -> None:
    vip = golden_vip("new_modules/main")
    vip(case_tokens("c_batch2_leftpad", vip)).sum().backward()
    assert set(gradients(vip)) == {name for name, _ in vip.network.named_parameters()}
