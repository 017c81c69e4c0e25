from __future__ import annotations

import pickle

import pytest
import torch
from tiny_models import llava, qwen2_5_vl
from torch.nn import functional as F

import glimpse_lightning as gl
from glimpse_lightning.engine import taps
from glimpse_lightning.engine.taps import AttentionTap


def _reference(query, key, value, mask, scaling):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(-1, -2) * scaling
    return logits, (logits + mask).softmax(-1) @ value


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tap_captures_a_row_and_biases_keys(attention):
    model = qwen2_5_vl(attention)
    gl.wrap_backbone(model)
    module = model.model.language_model.layers[0].self_attn
    attend = taps.ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 7, 12), torch.randn(2, 2, 7, 12), torch.randn(2, 2, 7, 12)
    causal = torch.zeros(2, 1, 7, 7).masked_fill(torch.ones(7, 7).tril() == 0, -torch.inf)
    bias = torch.randn(2, 5, requires_grad=True)
    tap = AttentionTap(span=slice(3, 5), key_bias=bias)

    output, _ = attend(module, query, key, value, causal, scaling=0.3, glimpse_tap=tap)

    logits, expected = _reference(query, key, value, causal + F.pad(bias, (0, 2))[:, None, None], 0.3)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    torch.testing.assert_close(tap.logits, logits[:, :, 3:5])
    (gradient,) = torch.autograd.grad(output.square().sum(), bias)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), bias)
    torch.testing.assert_close(gradient, expected_gradient)


def test_install_is_idempotent_and_reversible():
    model = qwen2_5_vl("eager")
    config = model.config.get_text_config()
    for _ in range(2):
        taps.install(config)
        assert config._attn_implementation == taps.TAPPED_EAGER
    taps.uninstall(config)
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_taps_come_along_to_a_process_that_knows_none(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``ddp_spawn`` does: the model is pickled, and unpickled where nothing was registered."""
    backbone = gl.wrap_backbone(llava(attention))
    inputs = backbone.example_inputs([[(4, 4)]])
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))])
    pickled = pickle.dumps((backbone, pruner))  # before anything has run, as `ddp_spawn` does
    expected = gl.PrunedVLM(backbone, pruner).prefill(**inputs).logits
    name = backbone.text_config._attn_implementation
    plain = taps.ALL_ATTENTION_FUNCTIONS[name].untapped
    registered = type(taps.ALL_ATTENTION_FUNCTIONS)._global_mapping
    if attention == "eager":
        monkeypatch.delitem(registered, name)
    else:
        monkeypatch.setitem(registered, name, plain)
    assert torch.equal(gl.PrunedVLM(*pickle.loads(pickled)).prefill(**inputs).logits, expected)
