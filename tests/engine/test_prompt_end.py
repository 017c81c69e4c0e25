"""Prompts that end in an image: decoding goes on from the last token, so it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone, pad_rows
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.testing import recompute_logits


def ending_in_images(backbone: Backbone) -> dict[str, Any]:
    """Four words and an image each, the second one's prompt with a word behind it."""
    rows, images = [], []
    for index, behind in enumerate((0, 1)):
        tokens, pixels = backbone.example_image(4, 4, torch.Generator().manual_seed(index))
        rows.append(torch.cat([torch.arange(20, 24), tokens, torch.full((behind,), 30)]))
        images.append([pixels])
    return pad_rows(rows, "left", 0) | backbone.example_pixels(images)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("early_kv", ["prune", "keep"])
def test_the_last_token_stays(family: str, early_kv: Any) -> None:
    """Whatever the policy: decoding equals recomputation, and training decoding."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = ending_in_images(backbone)
    stages = [gl.PruneStage(layer, gl.scorers.Random(), gl.policies.TopK(2), early_kv=early_kv) for layer in (0, 2)]
    pruner = gl.Pruner(stages)
    model = gl.PrunedVLM(backbone, pruner)
    out = model.prefill(keys=torch.arange(2), **inputs)
    assert out.prompt_keep[:, -1].all()
    per_sample = [torch.bincount(out.tokens.sample[keep], minlength=2).tolist() for keep in out.keep]
    assert all(first in (2, 3) and second == 2 for first, second in per_sample)
    ids = model.generate(prefill=out, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    logits = recompute_logits(backbone, pruner, inputs, out, ids[:, :-1])
    assert torch.equal(logits.argmax(-1), ids)
    gates = iter([torch.where(keep, 0.0, -torch.inf) for keep in out.keep])
    batch = Batch(inputs, ids, torch.ones_like(ids), torch.arange(2), torch.ones(2), [])
    with torch.no_grad():
        student = model.distill(batch, lambda *_: next(gates)).student_logits
    torch.testing.assert_close(student, logits, atol=1e-4, rtol=1e-4)
