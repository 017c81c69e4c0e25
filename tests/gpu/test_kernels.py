"""Kernels of the device: what the engine folds into them, and what it shares, changes nothing."""

from __future__ import annotations

import pytest
import torch
from devices import CUDA, glimpse_tiny
from tiny_models import FAMILIES
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CompileConfig

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine.shared_prefix import SharedPrefix

VIP = {"attention_dim": 16, "condition_dim": 16, "heads": 2, "vision_layers": [1]}


def pruner(layer: int = 1, ratio: float = 0.4) -> gl.Pruner:
    torch.manual_seed(0)
    with torch.device("cpu"):
        return gl.Pruner([gl.PruneStage(layer, gl.scorers.VIP(**VIP), gl.policies.KeepRatio(ratio))])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "qwen3_vl"])
@torch.no_grad()
def test_closed_gates_under_the_flash_kernel(family: str, device: str) -> None:
    """A gate of ``-1e4``, divided by the scaling and folded into a head dimension in bfloat16, hides its key as
    dropping it does; an open one changes nothing.
    """
    backbone = gl.wrap_backbone(FAMILIES[family]().to("cuda", torch.bfloat16))
    inputs = backbone.example_inputs([[(4, 4)]])  # alone: with padding there would be masks, which the kernel refuses
    model = gl.PrunedVLM(backbone, pruner().to(torch.bfloat16))
    keep = model.prefill(**inputs).keep[0]
    ids = torch.arange(20, 24, device="cuda")[None]
    one = torch.ones(1, device="cuda")
    batch = Batch(inputs, ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.long, device="cuda"), one, [])
    found = {}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for closed in (-1e4, -torch.inf, 0.0):
            gates = torch.where(keep, 0.0, closed)
            found[closed] = model.distill(batch, lambda *_, gates=gates: gates)
    gated, dropped, open_ = (found[closed].student_logits.float() for closed in (-1e4, -torch.inf, 0.0))
    teacher = found[0.0].teacher_logits.float()
    torch.testing.assert_close(gated, dropped, atol=0.05, rtol=0.05)
    torch.testing.assert_close(open_, teacher, atol=0.05, rtol=0.05)
    assert float((gated - teacher).abs().max()) > 0.05  # gates do something


@torch.no_grad()
def test_a_shared_prefix(device: str) -> None:
    """Copies of a prompt, and questions about one image, come out as if each ran for itself."""
    backbone = glimpse_tiny()
    data = gl.GlyphVQA("val", image_size=224, questions_per_image=2)
    batch = backbone.collate([data[i] for i in range(4)])
    inputs = {name: value.to("cuda") for name, value in batch.inputs.items()}
    model = gl.PrunedVLM(backbone, pruner(2))
    prompt = backbone.embed(inputs, model.vision_layers)
    shared = SharedPrefix.of(backbone, prompt, copies=2)
    assert shared is not None
    for copies, how in ((2, shared), (1, SharedPrefix.of(backbone, prompt))):
        apart = model.prefill(prompt=prompt, keys=batch.key.to("cuda"), copies=copies)
        together = model.prefill(prompt=prompt, keys=batch.key.to("cuda"), copies=copies, shared=how)
        assert torch.equal(together.kept(), apart.kept())
        torch.testing.assert_close(together.logits, apart.logits, atol=1e-3, rtol=1e-3)


def test_static_cache_and_compiled_decoding(device: str) -> None:
    """On a GPU Hugging Face compiles decoding on a static cache by itself."""
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]().to("cuda"))
    model = gl.PrunedVLM(backbone, pruner())
    inputs = backbone.example_inputs([[(4, 4)], [(4, 4)]])
    length = {"max_new_tokens": 4, "min_new_tokens": 4}
    want = model.generate(**inputs, **length)
    options = {"disable_compile": True} if device != CUDA else {"compile_config": CompileConfig(mode="default")}
    assert torch.equal(model.generate(**inputs, **length, cache_implementation="static", **options), want)


def test_the_scorer_compiled(device: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]().to("cuda"))
    ours = pruner()
    model = gl.PrunedVLM(backbone, ours)
    inputs = backbone.example_inputs([[(4, 4)], [(4, 4)]])
    (want,) = model.prefill(**inputs).scores
    if device == CUDA:
        ours.stages[0].scorer.network.compile()  # type: ignore[attr-defined]
    (got,) = model.prefill(**inputs).scores
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
