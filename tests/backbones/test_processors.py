"""From samples with pictures to answers, with Hugging Face's own processors around a made-up tokenizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES
from tiny_processors import processor

import glimpse_lightning as gl
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.testing import recompute_logits


def samples() -> list[gl.Sample]:
    kinds = (((40, 20), "red"), ((16, 30), "blue"), ((9, 9), "teal"))
    pictures = [Image.new("RGB", size, color) for size, color in kinds]
    return [
        gl.Sample("a", 0, "what is this", ["cat"], images=pictures[:1]),
        gl.Sample("b", 1, "this is what", ["dog"], images=pictures[1:]),
        gl.Sample("c", 2, "what", ["cat dog"]),
    ]


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_collated_batch_equals_single_samples(family):
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))
    model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
    batch = backbone.collate(samples())
    out = model.prefill(**batch.inputs, keys=batch.key)
    assert 0 < out.keep[0].sum() < len(out.keep[0])
    for row, sample in enumerate(samples()):
        alone = backbone.collate([sample])
        single = model.prefill(**alone.inputs, keys=alone.key)
        torch.testing.assert_close(out.logits[row], single.logits[0], atol=1e-4, rtol=1e-4)
    answers = backbone.decode(model.generate(**batch.inputs, max_new_tokens=3))
    assert len(answers) == 3


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_unpruned_equals_hugging_face(family):
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    asked = [*samples(), replace(samples()[0], images=samples()[1].images)]
    asked.append(replace(asked[1], question="is this"))  # about the very same images
    inputs = backbone.collate(asked).inputs
    with torch.no_grad():
        expected = backbone.model(**backbone.hf_inputs(inputs)).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "box", "expected"),
    [
        # 40 x 20 pixels become 32 x 16, of which the middle 16 x 16 are seen: columns from 0.25 to 0.75 of the image.
        ("llava", (0.0, 0.0, 0.2, 1.0), [[]]),
        ("llava", (0.3, 0.0, 0.45, 0.1), [[(0, 0), (0, 1)]]),
        # One row of two tiles of 2 x 2 tokens, behind them the image squeezed to a square.
        ("idefics3", (0.6, 0.6, 0.7, 0.9), [[], [(1, 0)], [(1, 1)]]),
        # Two tiles that make a mosaic of 4 x 8 tokens, behind the whole image in 4 x 4.
        ("llava_next", (0.6, 0.6, 0.7, 0.7), [[(2, 2)], [(2, 4), (2, 5)]]),
    ],
)
def test_evidence_of_an_oblong_image(family, box, expected):
    """The second sample has other images: only its own box touches it."""
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    batch = backbone.collate(samples()[:2])
    out = gl.PrunedVLM(backbone).prefill(**batch.inputs)
    tokens = out.tokens
    mask = evidence_mask(tokens, [[[box]], None])
    items = [item for item, sample in enumerate(tokens.item_sample.tolist()) if sample == 0]
    cells = [tokens.position[mask & (tokens.item == item)][:, 1:].tolist() for item in items]
    assert [[tuple(cell) for cell in item] for item in cells] == expected
    assert not mask[tokens.sample == 1].any()
    whole = evidence_mask(tokens, [None, [[(0.0, 0.0, 1.0, 1.0)], []]])
    first = int(tokens.views.image[tokens.item_sample == 1].min())
    assert torch.equal(whole, tokens.views.image[tokens.item] == first)


def test_what_items_show_travels_with_an_embedded_prompt():
    """Questions that several models share are kept embedded in main memory; evidence still finds its tiles."""
    backbone = gl.wrap_backbone(FAMILIES["llava_next"](), processor("llava_next"))
    batch = backbone.collate(samples()[:1])
    prompt = backbone.embed(batch.inputs).to(torch.device("cpu"))
    tokens = gl.PrunedVLM(backbone).prefill(prompt=prompt, keys=batch.key).tokens
    whole = gl.PrunedVLM(backbone).prefill(**batch.inputs).tokens
    boxes = [[[(0.6, 0.6, 0.7, 0.7)]]]
    assert torch.equal(evidence_mask(tokens, boxes), evidence_mask(whole, boxes))


CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "cat"}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "is this"}, {"type": "image"}, {"type": "text", "text": "dog"}],
    },
]


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_several_turns_with_images_in_two_of_them(family):
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    prompt = backbone.processor.apply_chat_template(CONVERSATION, tokenize=False)
    images = [sample.images[0] for sample in samples()[:2]]
    inputs = dict(backbone.processor(text=[prompt], images=[images], return_tensors="pt"))
    hf = backbone.model.generate(**backbone.hf_inputs(inputs), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    ids = gl.PrunedVLM(backbone).generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(ids, hf[:, inputs["input_ids"].shape[1] :])
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.3))])
    model = gl.PrunedVLM(backbone, pruner)
    out = model.prefill(**inputs)
    made = model.generate(
        prefill=out, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    expected = recompute_logits(backbone, pruner, inputs, out, made.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(list(made.logits), 1), expected, atol=1e-4, rtol=1e-4)
