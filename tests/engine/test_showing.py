"""What a prefill tells about itself: kept shares, a picture, a representation of one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import glimpse_lightning as gl
from glimpse_lightning.engine.overlay import KEPT_COLOUR
from glimpse_lightning.engine.prefill import PrefillOutput


@pytest.fixture(scope="module")
def out() -> PrefillOutput:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.25))
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    text = gl.Sample("t", 0, "what is drawn", ["x"])
    samples = [gl.GlyphVQA("test", size=2)[0], text, gl.GlyphVQA("test", size=2)[1]]
    return model.prefill(**model.backbone.collate(samples).inputs)


def test_shares_by_prompt(out: PrefillOutput) -> None:
    assert out.retention[[0, 2]].tolist() == [0.25, 0.25]
    assert torch.isnan(out.retention[1])  # it has no image
    assert repr(out) == "PrefillOutput(3 prompts, 512 visual tokens, 1 stages, kept 25.0%, -, 25.0%)"


def test_a_picture_of_each_prompts_own_tokens(out: PrefillOutput) -> None:
    page = gl.GlyphVQA("test", size=2)[0].images[0]
    first, last = (np.asarray(out.show(page, sample=number)) for number in (0, 2))
    assert (first == KEPT_COLOUR).all(-1).any()
    assert (first != last).any()
    assert np.array_equal(first, np.asarray(gl.overlay(page, out)))
    with pytest.raises(gl.GlimpseError, match="image 1 in prompt 0"):
        gl.overlay(page, out, number=1)
    with pytest.raises(gl.GlimpseError, match="image 0 in prompt 1"):
        out.show(page, sample=1)
