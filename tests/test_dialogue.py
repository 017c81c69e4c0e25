"""Conversations turn by turn: what is kept between two turns, and that answers do not depend on it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from tiny_processors import processor

import glimpse_lightning as gl
from glimpse_lightning.engine.decoding import continued

PAGES = [gl.GlyphVQA("test", 8, questions_per_image=2)[index] for index in range(4)]


def pruned(name: str = "glimpse-tiny", keep: float = 0.3, **options: Any) -> gl.PrunedVLM:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(keep), **options)
    return gl.PrunedVLM(gl.load_backbone(name), gl.Pruner([stage]))


def turns(dialogue: gl.Dialogue, with_new_image: bool = True) -> list[Any]:
    """A question about a page, another one, one about a second page, and one more."""
    first, again, second, last = PAGES
    found = [dialogue.ask(first.question, first.images, max_new_tokens=8)]
    found.append(dialogue.ask(again.question, max_new_tokens=8))
    if with_new_image:
        found.append(dialogue.ask(second.question, second.images, max_new_tokens=8))
        found.append(dialogue.ask(last.question, max_new_tokens=8))
    return found


def test_states_answer_as_the_whole_conversation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned()
    whole, kept = turns(gl.Dialogue(model, "nothing")), turns(gl.Dialogue(model))
    for one, other in zip(whole, kept, strict=True):
        assert other.answer == one.answer
        assert torch.equal(other.prefill.kept(), one.prefill.kept())
        assert torch.allclose(other.prefill.logits, one.prefill.logits, atol=1e-4)
    assert [turn.images_seen for turn in kept] == [turn.images_seen for turn in whole] == [1, 0, 1, 0]
    assert [one.ran > other.ran for one, other in zip(whole, kept, strict=True)] == [False, True, True, True]
    assert kept[1].ran < 40 < 256 < kept[2].ran < 300
    assert [turn.kept_bytes for turn in whole] == [0] * 4
    assert kept[0].kept_bytes < kept[1].kept_bytes < kept[2].kept_bytes / 1.9


def test_what_the_first_turn_dropped_comes_back() -> None:
    model = pruned(keep=0.1)
    dialogue = gl.Dialogue(model)
    first, again = turns(dialogue, with_new_image=False)
    assert bool((again.prefill.kept() & ~first.prefill.kept()).any())
    first, again = turns(gl.Dialogue(model, "cache"), with_new_image=False)
    assert torch.equal(again.prefill.kept(), first.prefill.kept())


def test_a_cache_answers_as_the_whole_conversation_where_the_choice_is_the_images() -> None:
    stage = gl.PruneStage(-1, gl.scorers.VisionRank(), gl.policies.KeepRatio(0.3))
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
    whole = turns(gl.Dialogue(model, "nothing"), with_new_image=False)
    cache = turns(gl.Dialogue(model, "cache"), with_new_image=False)
    for one, other in zip(whole, cache, strict=True):
        assert other.answer == one.answer
        assert torch.allclose(other.prefill.logits, one.prefill.logits, atol=1e-4)
    assert cache[1].ran < 40


BOTH = {"early_kv": "keep", "positions": "renumber"}


@pytest.mark.parametrize("options", [{}, {"early_kv": "keep"}, {"positions": "renumber"}, BOTH], ids=str)
def test_going_on_from_a_prefill_equals_the_forward_of_both(options: dict[str, Any]) -> None:
    model = pruned(**options)
    batch = model.backbone.collate(PAGES[:1])
    more = batch.inputs["input_ids"][:, -3:].repeat(1, 3)
    out = model.prefill(**batch.inputs)
    width = batch.inputs["input_ids"].shape[1]
    longer = dict(batch.inputs)
    longer["input_ids"] = torch.cat([longer["input_ids"], more], 1)
    longer["attention_mask"] = torch.cat([longer["attention_mask"], torch.ones_like(more)], 1)
    if "mm_token_type_ids" in longer:
        longer["mm_token_type_ids"] = torch.cat([longer["mm_token_type_ids"], torch.zeros_like(more)], 1)
    with torch.no_grad():
        logits = model(**longer, prompt_length=width).logits
        one = continued(model.backbone, out, more)
        in_two = continued(model.backbone, continued(model.backbone, out, more[:, :4]), more[:, 4:])
    for each in (one, in_two):
        assert torch.allclose(each.logits, logits[:, -1], atol=1e-4)
        assert each.prompt_keep.shape[1] == width + 9
        ids = model.generate(prefill=each, max_new_tokens=6)
        assert torch.equal(ids, model.generate(prefill=one, max_new_tokens=6))
    assert out.cache.layers[0].keys.shape[2] < width + 9, "the prefill stays as it was"


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_families_whose_images_have_several_tiles(family: str) -> None:
    """A second image's tiles follow the first one's, and the tower runs once for each image."""
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    backbone.model.generation_config.eos_token_id = 1
    model = gl.PrunedVLM(
        backbone, gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))])
    )
    pages = [page.images[0].resize(size) for page, size in zip(PAGES, ((40, 20), (20, 40)), strict=False)]
    found = []
    for keeps in ("nothing", "states"):
        dialogue = gl.Dialogue(model, keeps)
        found.append(
            [
                dialogue.ask("what is this", pages[:1], max_new_tokens=3),
                dialogue.ask("is this cat", max_new_tokens=3),
                dialogue.ask("what is", pages[1:], max_new_tokens=3),
            ]
        )
    fresh = backbone.converse(dialogue.messages[:-1])
    assert torch.allclose(model.prefill(**fresh).logits, found[1][-1].prefill.logits, atol=1e-4)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.prefill.logits, other.prefill.logits, atol=1e-4)
    assert [turn.images_seen for turn in found[1]] == [1, 0, 1]


def test_a_turn_that_fails_leaves_the_conversation() -> None:
    page = PAGES[0]
    dialogue = gl.Dialogue(pruned(), system=None)
    before = dialogue.ask(page.question, page.images, max_new_tokens=8)
    messages = list(dialogue.messages)
    with pytest.raises(gl.GlimpseError, match="does not know"):
        dialogue.ask("what holds M", max_new_tokens=8, no_such_option=1)
    assert dialogue.messages == messages
    after = dialogue.ask(PAGES[1].question, max_new_tokens=8)
    fresh = gl.Dialogue(dialogue.model, "nothing")
    assert fresh.ask(page.question, page.images, max_new_tokens=8).answer == before.answer
    assert fresh.ask(PAGES[1].question, max_new_tokens=8).answer == after.answer


@pytest.mark.parametrize("keeps", ["states", "nothing"])
def test_nothing_is_held_that_no_turn_reads(keeps: Any) -> None:
    dialogue = gl.Dialogue(pruned(), keeps)
    turn = dialogue.ask(PAGES[0].question, PAGES[0].images, max_new_tokens=4)
    held = weakref.ref(turn.prefill)
    del turn
    gc.collect()
    assert held() is None


def test_budgets_of_one_turn() -> None:
    page, dialogue = PAGES[0], gl.Dialogue(pruned(keep=0.3))
    first = dialogue.ask(page.question, page.images, retention=0.5, max_new_tokens=4)
    second = dialogue.ask(page.question, max_new_tokens=4)
    assert [round(float(turn.prefill.retention), 2) for turn in (first, second)] == [0.5, 0.3]


def test_without_an_image_and_without_a_pruner() -> None:
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"))
    page, dialogue = PAGES[0], gl.Dialogue(model)
    assert dialogue.ask("what holds M", max_new_tokens=4).images_seen == 0
    turn = dialogue.ask(page.question, page.images, max_new_tokens=8)
    assert turn.images_seen == 1
    whole = model.generate(**model.backbone.converse(dialogue.messages[:-1]), max_new_tokens=8)
    assert model.backbone.decode(whole)[0] == turn.answer


def test_what_cannot_be_is_refused() -> None:
    model, page = pruned(), PAGES[0]
    with pytest.raises(ValueError, match="keeps"):
        gl.Dialogue(model, "everything")  # type: ignore[arg-type]
    dialogue = gl.Dialogue(model, "cache")
    dialogue.ask(page.question, page.images, max_new_tokens=4)
    with pytest.raises(gl.GlimpseError, match=r"takes no new images and prunes nothing.*keeps='states'"):
        dialogue.ask(page.question, page.images, max_new_tokens=4)
    with pytest.raises(gl.GlimpseError, match="prunes nothing"):
        dialogue.ask(page.question, retention=0.5, max_new_tokens=4)
    for option in ({"num_return_sequences": 2, "do_sample": True}, {"return_dict_in_generate": True}):
        with pytest.raises(gl.GlimpseError, match=f"leave out `{next(iter(option))}`"):
            gl.Dialogue(model).ask(page.question, page.images, max_new_tokens=4, **option)
    bare = gl.PrunedVLM(gl.wrap_backbone(FAMILIES["llava"]()))
    with pytest.raises(gl.GlimpseError, match="has no processor"):
        gl.Dialogue(bare)
