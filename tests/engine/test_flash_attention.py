"""Kernels that take unpadded sequences and no mask: a stand-in with their rules, and the real one on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import glimpse_lightning as gl
from glimpse_lightning import testing
from glimpse_lightning.testing import CHECKS, SIZES

STAND_IN = "unpadded_stand_in"


def unpadded(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What FlashAttention-2 computes: padding is cut out by a mask ``[B, keys]`` and, among what is left, the last
    query sees all keys, or the last ``sliding_window`` ones, and each query before it one less at the end. Padded rows
    come back as zeros.
    """
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
    assert attention_mask is None or attention_mask.shape == (key.shape[0], key.shape[2])
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.zeros_like(query)
    for row in range(len(query)):
        real = torch.ones(key.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
        asks = real[-query.shape[2] :]
        q, k, v = query[row, :, asks], key[row, :, real], value[row, :, real]
        last = k.shape[1] - q.shape[1]
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(last)
        if sliding_window is not None:
            seen = seen.triu(last - sliding_window + 1)
        weights = (q @ k.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
        output[row, :, asks] = weights @ v
    return output.transpose(1, 2), None


@pytest.fixture
def stand_in() -> Iterator[str]:
    AttentionInterface.register(STAND_IN, unpadded)
    AttentionMaskInterface.register(STAND_IN, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    yield STAND_IN
    del ALL_ATTENTION_FUNCTIONS._global_mapping[STAND_IN], ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[STAND_IN]


# Plain recomputation hands over masks, which this kernel does not take; test_same_as_sdpa stands in for it.
MASKLESS = [check for check in CHECKS if check is not testing.check_decoding_equals_recomputation]
# Every check of the first of the families whose decoders differ most (positions of three axes; windows, and images that
# see ahead; windows alone), of these also the checks that depend on windows, and of each family the comparison with
# Hugging Face; test_same_as_sdpa prunes every family. The rest are slow tests.
DIFFER = ("qwen2_5_vl", "gemma3", "llava_next")
OF_WINDOWS = [check for check in MASKLESS if check is not testing.check_batch_independence]


def usual(family: str, check: Any) -> bool:
    """Whether a check is no slow test."""
    return family == DIFFER[0] or (family in DIFFER and check in OF_WINDOWS) or check is testing.check_plain_equals_hf


RUNS = [
    pytest.param(family, check, marks=() if usual(family, check) else pytest.mark.slow)
    for family in FAMILIES
    for check in MASKLESS
]


@pytest.mark.parametrize(("family", "check"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_conformance_without_masks(family: str, check: Any, stand_in: str) -> None:
    model = FAMILIES[family]()
    model.config.get_text_config()._attn_implementation = stand_in
    backbone = gl.wrap_backbone(model)
    windows = any(backbone.window(layer) is not None for layer in range(len(backbone.layers)))
    if windows and check in (testing.check_gradients, testing.check_closed_gates_equal_pruning):
        with pytest.raises(gl.GlimpseError, match="load the model with `attn_implementation='sdpa'`"):
            check(backbone)  # soft gates of several stages, whose windows the kernel would count wrong
    else:
        check(backbone)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma3"])  # needs a mask inside images
def test_same_as_sdpa(family: str, stand_in: str) -> None:
    """Scores, kept tokens and decoded logits of a ragged batch, several stages with every kind of probe."""
    outputs = []
    for attention in ("sdpa", stand_in):
        model = FAMILIES[family]()
        model.config.get_text_config()._attn_implementation = attention
        torch.manual_seed(0)
        stages = [
            gl.PruneStage(0, gl.scorers.TextRank(), gl.policies.KeepRatio(0.7)),
            gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5)),
            gl.PruneStage(2, gl.scorers.VIP(attention_dim=16, condition_dim=16, heads=2), gl.policies.KeepRatio(0.2)),
        ]
        pruned = gl.PrunedVLM(gl.wrap_backbone(model), gl.Pruner(stages))
        out = pruned.prefill(**pruned.backbone.example_inputs(SIZES))
        options = {"output_logits": True, "return_dict_in_generate": True}
        made = pruned.generate(prefill=out, max_new_tokens=4, min_new_tokens=4, **options)
        outputs.append((out, torch.stack(list(made.logits))))
    (masked, masked_logits), (cut, cut_logits) = outputs
    for one, other in zip(masked.scores, cut.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(masked.keep, cut.keep, strict=True))
    torch.testing.assert_close(masked_logits, cut_logits, atol=1e-4, rtol=1e-4)


def test_unknown_kernel_is_named() -> None:
    model = FAMILIES["llava"]()
    model.config.get_text_config()._attn_implementation = "nobody/knows"
    with pytest.raises(gl.GlimpseError, match=r"'nobody/knows'.*attn_implementation='sdpa'"):
        gl.wrap_backbone(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("preset", ["smolvlm-256m", "qwen2.5-vl-3b"])
def test_flash_attention_in_bf16(preset: str, version: int) -> None:
    """Keep-all equals Hugging Face's own, and a sample alone equals the same in a ragged batch, within bf16."""
    available = getattr(utils, f"is_flash_attn_{version}_available", None)  # older versions know fewer of them
    if available is None or not available():
        pytest.skip(f"needs FlashAttention-{version}, as pip install glimpse-lightning[flash] brings 2")
    backbone = gl.load_backbone(
        f"random:{preset}", dtype="bfloat16", attn_implementation=f"flash_attention_{version}", device_map="cuda"
    )
    inputs = backbone.example_inputs(SIZES)
    with torch.no_grad():
        expected = backbone.model(**backbone.hf_inputs(inputs), logits_to_keep=1).logits[:, -1]
    for ratio in (1.0, 0.4):
        stage = gl.PruneStage(2, gl.scorers.AttentionRank(), gl.policies.KeepRatio(ratio))
        model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
        out = model.prefill(**inputs)
        if ratio == 1:
            torch.testing.assert_close(out.logits, expected, atol=0.05, rtol=0.05)
            continue
        for index, sizes in enumerate(SIZES):
            alone = model.prefill(**backbone.example_inputs([sizes], first_sample=index))
            torch.testing.assert_close(out.logits[index], alone.logits[0], atol=0.05, rtol=0.05)
