"""Uneven batches: one token left of a sample, none, all; text alone; stages before layer 0, between and last."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning import scorers as s
from glimpse_lightning.testing import recompute_logits

SIZES = [[(3, 4), (2, 2), (4, 8)], [(5, 2)], [], [(4, 4)], [(8, 2), (1, 1)]]
KEYS = torch.arange(len(SIZES))
KEPT = {0: 1, 1: 5, 3: 10**6}  # tokens of each sample; none of the last
BEAMS = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}


class Uneven(p.Policy):
    """The best ``KEPT`` tokens of each sample, which its key names."""

    def select(self, scores: Tensor, tokens: gl.VisualTokens) -> Tensor:
        keep = torch.zeros_like(tokens.item, dtype=torch.bool)
        for sample, key in enumerate(tokens.key.tolist()):
            mine = (tokens.sample == sample).nonzero()[:, 0]
            keep[mine[scores[mine].argsort(descending=True, stable=True)[: KEPT.get(key, 0)]]] = True
        return keep


def vip() -> gl.scorers.Scorer:
    return s.VIP(attention_dim=16, condition_dim=16, heads=2)


PRUNERS = {
    "uneven": lambda _: [gl.PruneStage(1, vip(), Uneven())],
    "before, between and last": lambda last: [
        gl.PruneStage(-1, s.Random(), p.KeepRatio(0.7)),
        gl.PruneStage(2, vip(), p.KeepRatio(0.4)),
        gl.PruneStage(last, s.AttentionRank(), p.KeepRatio(0.1)),
    ],
}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_sample_is_as_if_alone(family: str, name: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    torch.manual_seed(0)
    pruner = gl.Pruner(PRUNERS[name](len(backbone.layers) - 1))
    model = gl.PrunedVLM(backbone, pruner)
    inputs = backbone.example_inputs(SIZES)
    out = model.prefill(keys=KEYS, **inputs)
    mirrored = model.prefill(keys=KEYS, **backbone.example_inputs(SIZES, padding_side="right"))
    torch.testing.assert_close(mirrored.logits, out.logits, atol=1e-4, rtol=1e-4)
    options = {"output_logits": True, "return_dict_in_generate": True}
    made = model.generate(prefill=out, max_new_tokens=4, min_new_tokens=4, **options)
    expected = recompute_logits(backbone, pruner, inputs, out, made.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(list(made.logits), 1), expected, atol=1e-4, rtol=1e-4)
    beams = model.generate(prefill=out, **BEAMS)
    assert torch.equal(model.generate(prefill=mirrored, **BEAMS), beams)
    for index, sizes in enumerate(SIZES):
        alone = model.prefill(keys=KEYS[index : index + 1], **backbone.example_inputs([sizes], first_sample=index))
        torch.testing.assert_close(alone.logits[0], out.logits[index], atol=1e-4, rtol=1e-4)
        own = model.generate(prefill=alone, **BEAMS)
        assert torch.equal(own, beams[2 * index : 2 * index + 2, : own.shape[1]])
