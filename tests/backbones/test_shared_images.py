"""Questions about one image share the vision tower's work, and come out as if they did not."""

from __future__ import annotations

from dataclasses import replace

import torch

import glimpse_lightning as gl


def test_a_batch_that_shares_images_equals_one_that_does_not():
    backbone = gl.load_backbone("glimpse-tiny")
    shared = [gl.GlyphVQA("val", image_size=224, questions_per_image=2)[i] for i in (0, 2)]
    other = gl.GlyphVQA("val", image_size=336)[0]
    third = replace(shared[0], question="list all in red")
    two_images = replace(other, images=[other.images[0], shared[1].images[0]], boxes=None)
    samples = [shared[0], other, third, shared[1], two_images]
    apart = [replace(sample, images=[image.copy() for image in sample.images]) for sample in samples]
    batch, plain = backbone.collate(samples), backbone.collate(apart)
    assert len(plain.inputs["pixel_values"]) == 4 * 256 + 2 * 576
    assert len(batch.inputs["pixel_values"]) == 2 * 256 + 576
    with torch.no_grad():
        one, two = (backbone.embed(each.inputs, (0, 2)) for each in (batch, plain))
    torch.testing.assert_close(one.embeds, two.embeds)
    torch.testing.assert_close(one.position_ids, two.position_ids)
    torch.testing.assert_close(one.grid, two.grid)
    for layer in (0, 2):
        torch.testing.assert_close(one.vision[layer], two.vision[layer])
    model = gl.PrunedVLM(backbone)
    answers = [model.generate(**each.inputs, max_new_tokens=6, do_sample=False) for each in (batch, plain)]
    assert torch.equal(*answers)


def test_hugging_faces_model_gets_the_pixels_of_every_image():
    backbone = gl.load_backbone("glimpse-tiny")
    first, other = gl.GlyphVQA("val", image_size=224)[0], gl.GlyphVQA("val", image_size=336)[1]
    both = replace(other, images=[other.images[0], first.images[0], other.images[0]], boxes=None)
    text = replace(first, images=[], boxes=None)
    samples = [both, first, text, replace(first, question="list all in red"), other]
    apart = [replace(sample, images=[image.copy() for image in sample.images]) for sample in samples]
    batch, plain = backbone.collate(samples), backbone.collate(apart)
    shared, whole = backbone.hf_inputs(batch.inputs), backbone.hf_inputs(plain.inputs)
    assert shared.keys() == whole.keys()
    assert all(torch.equal(shared[name], whole[name]) for name in whole)
    assert len(batch.inputs["pixel_values"]) == 256 + 576  # and `inputs` stay as they were
    ids = gl.PrunedVLM(backbone).generate(**batch.inputs, max_new_tokens=6, do_sample=False)
    hf = backbone.model.generate(**shared, max_new_tokens=6, do_sample=False)
    assert torch.equal(ids, hf[:, shared["input_ids"].shape[1] :])
    with torch.no_grad():
        logits = gl.PrunedVLM(backbone)(**batch.inputs).logits
        assert torch.equal(logits, backbone.model(**shared).logits)
