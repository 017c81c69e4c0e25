from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import glimpse_lightning as gl
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.evaluation.evaluator import Evaluator
from glimpse_lightning.evaluation.records import Record, Summary, by_family, snake_case, summarise
from glimpse_lightning.evaluation.shared_questions import FullAnswer
from glimpse_lightning.metrics import ExactMatch


def record(name: str, **kwargs: object) -> Record:
    given = {"family": "", "question": "q", "references": ["a"], "prediction": "a", "full_prediction": "a"}
    given |= {"score": 1.0, "full_score": 1.0, "kept": 1, "total": 4}
    return Record(id=name, **(given | kwargs))  # type: ignore[arg-type]


def test_summary_of_a_few_records() -> None:
    records = [
        record("1", family="x", kl=0.2, evidence=2, evidence_recall=0.5, evidence_precision=1.0, evidence_iou=0.5),
        record("2", family="y", kept=3, score=0.0, prediction="b", kl=0.4),
        record("3", family="y", kept=0, total=0, full_score=0.0, score=0.0),
        record("4", family="y", kept=2),
    ]
    figures = summarise(records)
    assert figures["n"] == 4
    assert figures["retention"] == pytest.approx((1 / 4 + 3 / 4 + 2 / 4) / 3)  # a question without image has none
    assert figures["retention_quantiles"]["p50"] == 0.5
    assert (figures["accuracy"], figures["full_accuracy"]) == (0.5, 0.75)
    assert figures["relative_accuracy"] == pytest.approx(2 / 3)
    assert figures["agreement"] == 0.75
    assert figures["kl"] == pytest.approx(0.3)
    assert figures["evidence_recall"] == 0.5
    assert figures["oracle_retention"] == 0.5
    assert [len(group) for group in by_family(records).values()] == [1, 3]


def test_what_is_not_defined_is_none() -> None:
    figures = summarise([record("1", total=0, full_score=0.0)])
    for name in ("retention", "retention_quantiles", "relative_accuracy", "kl", "evidence_iou", "oracle_retention"):
        assert figures[name] is None


def test_baselines_stand_beside_in_all_and_in_families() -> None:
    summary = Summary([record("1", family="x")], {"AttentionRank": [record("1", family="x", score=0.0)]})
    assert summary.metrics["attention_rank_relative_accuracy"] == 0.0
    assert summary.families["x"]["attention_rank_accuracy"] == 0.0


def test_snake_case() -> None:
    assert [snake_case(name) for name in ("AttentionRank", "VIP", "Random")] == ["attention_rank", "vip", "random"]


def test_kl_of_remembered_answers_is_exact_when_all_tokens_are_remembered() -> None:
    teacher, student = (torch.randn(3, 11, generator=torch.Generator().manual_seed(i)).log_softmax(-1) for i in (0, 1))
    exact = (teacher.exp() * (teacher - student)).sum(-1).mean()
    top = teacher.topk(11)
    assert FullAnswer("", [], top.indices.int(), top.values).kl(student) == pytest.approx(float(exact), abs=1e-5)
    some = teacher.topk(4)
    bound = FullAnswer("", [], some.indices.int(), some.values).kl(student)
    assert 0 < bound <= float(exact) + 1e-6
    assert FullAnswer("", [], some.indices.int(), some.values).kl(teacher) == pytest.approx(0, abs=1e-6)


class Places:
    """Two images of sample 0 (2 x 4 and 1 x 2 tokens) and one of sample 1 (1 x 2)."""

    item = torch.tensor([0] * 8 + [1] * 2 + [2] * 2)
    item_sample = torch.tensor([0, 0, 1])
    grid = torch.tensor([[1, 2, 4], [1, 1, 2], [1, 1, 2]])
    position = torch.tensor([[0, r, c] for r in range(2) for c in range(4)] + [[0, 0, 0], [0, 0, 1]] * 2)
    views = None


def test_evidence_mask_touches_the_cells_of_the_reference() -> None:
    boxes = [[[(0.3, 0.0, 0.5, 0.4)], [(0.6, 0.1, 1.0, 1.0)]], None]
    touched = evidence_mask(Places(), boxes)
    # int(0.3 * 4) = 1 to int(0.5 * 4) = 2 in row 0; the second image's right cell; no annotation in sample 1
    assert touched.nonzero().flatten().tolist() == [1, 2, 9]
    assert not evidence_mask(Places(), [[[], []], None]).any()


def test_the_full_models_answers_go_by_content_not_by_name() -> None:
    """Rows of two files are both called 1, 2, ...; another word, pixel or answer makes another sample."""
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"))
    evaluator = Evaluator(model, ExactMatch(), max_new_tokens=4)
    val, test = (gl.GlyphVQA(split, 1, image_size=224)[0] for split in ("val", "test"))
    test = replace(test, id=val.id, key=val.key)
    first, second = (evaluator.full_answers(model.backbone.collate([sample]))[0] for sample in (val, test))
    assert second is not first
    assert evaluator.full_answers(model.backbone.collate([replace(val, id="another", key=7)]))[0] is first
    other = val.images[0].copy()
    other.putpixel((0, 0), (1, 2, 3))
    changed = [replace(val, question="Which word?"), replace(val, answers=["x"]), replace(val, images=[other])]
    assert len({sample.content() for sample in (val, *changed)}) == 4


def test_questions_about_the_same_pixels_name_the_same_image() -> None:
    one = gl.GlyphVQA("test", 1, image_size=224)[0]
    other = one.images[0].copy()
    other.putpixel((0, 0), (1, 2, 3))
    asked = replace(one, id="another", question="Which word?", images=[one.images[0].copy()])
    assert asked.image_name == one.image_name != ""
    names = {replace(one, images=images).image_name for images in ([other], [other, other], [*one.images, other])}
    assert len(names | {one.image_name}) == 4
    assert replace(one, images=[]).image_name == ""


def test_records_name_their_image() -> None:
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"))
    one, other = (gl.GlyphVQA("test", 2, image_size=224)[i] for i in range(2))
    samples = [one, replace(one, id="again", question="Which word?"), other, replace(other, id="bare", images=[])]
    records, _ = Evaluator(model, ExactMatch(), max_new_tokens=1).evaluate(model, model.backbone.collate(samples))
    assert [record.image for record in records] == [one.image_name, one.image_name, other.image_name, ""]
