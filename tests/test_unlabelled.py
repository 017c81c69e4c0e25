"""Data without answers: KL trains on those that the full model writes, and a test reports agreement and KL."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.tables.columns import Columns
from glimpse_lightning.data.tables.table import Table
from glimpse_lightning.evaluation.answers import WrittenAnswers
from glimpse_lightning.evaluation.evaluator import Evaluator
from glimpse_lightning.evaluation.records import summarise
from glimpse_lightning.metrics import ExactMatch
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import GRPO, KL, DifferentiableTopK, Mask, Supervised
from glimpse_lightning.rewards.combined import CombinedReward, RewardFacts
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.training.annotations import Annotations


@pytest.fixture(scope="module")
def full() -> PrunedVLM:
    return PrunedVLM(gl.load_backbone("glimpse-tiny"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    data = gl.GlyphVQA("val", 4, image_size=224)
    return [data[index] for index in range(4)]


def unlabelled(sample: Sample) -> Sample:
    return replace(sample, answers=[])


def rows(batch: Batch) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch.answer_ids, batch.answer_mask, strict=True)]


def test_a_sample_without_answers_has_no_answer_tokens(full: PrunedVLM, samples: list[Sample]) -> None:
    batch = full.backbone.collate([samples[0], unlabelled(samples[1])])
    assert rows(batch) == [rows(full.backbone.collate(samples[:1]))[0], []]
    assert rows(full.backbone.collate([unlabelled(samples[0])])) == [[]]


def test_what_is_written_is_what_the_full_model_says(full: PrunedVLM, samples: list[Sample]) -> None:
    """And labelled samples of the same batch stay as they are."""
    said = [answer.text for answer in Evaluator(full, ExactMatch(), 8).full_answers(full.backbone.collate(samples))]
    mixed = [unlabelled(samples[0]), samples[1], unlabelled(samples[2]), samples[3]]
    filled = WrittenAnswers(full, None, 8).filled(full.backbone.collate(mixed))
    wanted = full.backbone.collate(
        [replace(sample, answers=[text]) if index % 2 == 0 else sample
         for index, (sample, text) in enumerate(zip(samples, said, strict=True))]
    )  # fmt: skip
    assert rows(filled) == rows(wanted)
    assert torch.equal(filled.answer_mask, wanted.answer_mask)


def test_a_training_step_is_that_of_the_written_answers(samples: list[Sample]) -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    model = PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, scorer, gl.policies.Threshold())]))
    full = PrunedVLM(backbone)
    said = [answer.text for answer in Evaluator(full, ExactMatch(), 8).full_answers(backbone.collate(samples))]
    labelled = [replace(sample, answers=[text]) for sample, text in zip(samples, said, strict=True)]
    losses = []
    for batch in (
        backbone.collate(labelled),
        WrittenAnswers(full, None, 8).filled(backbone.collate([unlabelled(sample) for sample in samples])),
    ):
        torch.manual_seed(0)
        losses.append(KL().step(model, batch).loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_an_answer_is_written_once(
    full: PrunedVLM, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all runs of the same weights and settings, and from one batch to the next; torn lines do no harm."""
    calls: list[int] = []
    generate = PrunedVLM.generate

    def counted(self: PrunedVLM, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(PrunedVLM, "generate", counted)
    first, second = ([unlabelled(sample) for sample in part] for part in (samples[:3], samples[2:]))
    written = WrittenAnswers(full, tmp_path, 8)
    found = rows(written.filled(full.backbone.collate(first)))
    assert rows(written.filled(full.backbone.collate(first[:2]))) == found[:2]
    assert len(calls) == 1
    (file,) = tmp_path.glob("*/*.jsonl")
    with file.open("a") as out:
        out.write('{"question": "torn')
    again = WrittenAnswers(full, tmp_path, 8, "other")
    assert rows(again.filled(full.backbone.collate(first))) == found
    assert len(calls) == 1
    assert rows(again.filled(full.backbone.collate(second)))[0] == found[2]
    assert len(calls) == 2
    assert len(list(tmp_path.glob("*/*.jsonl"))) == 2  # each run and rank writes its own
    assert WrittenAnswers(full, tmp_path, 4).rows == {}
    with torch.no_grad():
        table = full.model.get_input_embeddings().weight
        before = table.clone()
        table.mul_(2)
        assert WrittenAnswers(full, tmp_path, 8).rows == {}
        table.copy_(before)
    assert len(WrittenAnswers(full, tmp_path, 8).rows) == 4


def test_kl_is_measured_along_the_full_answer(full: PrunedVLM, samples: list[Sample]) -> None:
    """As where that answer is the reference, which alone also has a score."""
    pruner = gl.Pruner([gl.PruneStage(0, gl.scorers.Random(), gl.policies.KeepRatio(0.3))])
    model = PrunedVLM(full.backbone, pruner)
    evaluator = Evaluator(full, ExactMatch(), 8)
    bare, _ = evaluator.evaluate(model, full.backbone.collate([unlabelled(sample) for sample in samples]))
    labelled = [replace(sample, answers=[record.full_prediction]) for sample, record in zip(samples, bare, strict=True)]
    known, _ = evaluator.evaluate(model, full.backbone.collate(labelled))
    for one, other in zip(bare, known, strict=True):
        assert (one.prediction, one.kept) == (other.prediction, other.kept)
        assert one.kl == pytest.approx(other.kl, abs=1e-6)
        assert (one.score, one.full_score) == (None, None)
        assert other.full_score == 1


def test_rewards_that_compare_know_nothing_of_unlabelled_answers() -> None:
    reward = CombinedReward({"exact_match": 1.0, "pruning_rate": 1.0})
    known, unknown = RewardFacts("q", "a", ["a"], retention=0.5), RewardFacts("q", "a", [], retention=0.5)
    rewarded = reward([unknown, known])
    assert rewarded.total[1] == 1.5
    assert rewarded.total[0] != rewarded.total[0]  # NaN
    assert rewarded.parts["pruning_rate"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"answers": ["x"], "boxes": [[0, 0, 1, 1]]}, (1, 1)),
        ({"answers": [], "boxes": []}, (0, 0)),
        ({"answer": "", "boxes": None}, (0, 0)),
    ],
)
def test_empty_annotations_are_none(tmp_path: Path, line: dict[str, Any], found: tuple[int, int]) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "q", "image": "a.png", **line}) + "\n")
    data = JSONL(str(tmp_path / "d.jsonl"), require_answers=False)
    assert (data.annotated("answers"), data.annotated("boxes")) == found
    cell = {"question": "q", "image": "a.png", "answers": None, "boxes": None, **line}
    (tmp_path / "t.jsonl").write_text(json.dumps(cell) + "\n")
    columns = Columns(answers="answer" if "answer" in line else "answers", boxes="boxes")
    table = Table(str(tmp_path / "t.jsonl"), columns, require_answers=False)
    assert (table.annotated("answers"), table.annotated("boxes")) == found


def test_figures_say_of_how_many_answers_accuracy_is(full: PrunedVLM, samples: list[Sample]) -> None:
    some = [*samples[:3], unlabelled(samples[3])]
    records, _ = Evaluator(full, ExactMatch(), 8).evaluate(full, full.backbone.collate(some))
    figures = summarise(records)
    assert (figures["n"], figures["scored"]) == (4, 3)


class Counted:
    def __init__(self, **found: int) -> None:
        self.found = found

    def __len__(self) -> int:
        return 4

    def annotated(self, what: str) -> int:
        return self.found.get(what, 0)


@pytest.mark.parametrize("objective", [Mask(), Supervised(), DifferentiableTopK(), GRPO({"exact_match": 1.0})])
def test_what_an_objective_needs_is_asked_for_before_training(objective: Any) -> None:
    (what,) = objective.needs
    Annotations(objective, Counted(**{what: 1}))
    with pytest.raises(GlimpseError, match=f"Expected `{what}`.* none of the 4 training samples .*KL objective"):
        Annotations(objective, Counted())


def test_what_was_never_met_is_said(samples: list[Sample]) -> None:
    """Of a dataset that cannot count."""
    annotations = Annotations(Mask(), samples)
    annotations.see([replace(samples[0], boxes=None)])
    assert "No training sample had `boxes`" in annotations.remarks(["boxes"], torch.device("cpu"))[0]
    annotations.see(samples)
    assert annotations.remarks(["boxes"], torch.device("cpu")) == []


def test_an_unlabelled_table_from_fit_to_test(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    for index, sample in enumerate(samples):
        sample.images[0].save(tmp_path / f"{index}.png")
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "image"], *([s.question, f"{i}.png"] for i, s in enumerate(samples))])
    flags: list[str] = []
    for split in ("train", "val", "test"):
        path = str(tmp_path / "own.csv")
        flags += [f"--data.{split}", "Table", f"--data.{split}.path", path, f"--data.{split}.columns.answers", "null"]
    root = tmp_path / "runs"
    short = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    assert run("fit", write_recipe(tmp_path), root, *flags, *short) == 0
    results = json.loads((root / "small/fit_0/results.json").read_text())
    assert results["n"] == 4
    assert results["metrics"]["accuracy"] is None
    assert 0 <= results["metrics"]["agreement"] <= 1
    assert results["metrics"]["kl"] > 0
    (answers,) = (root / "small/full_answers").glob("*/*.jsonl")
    assert len(answers.read_text().splitlines()) == 4
    capsys.readouterr()
    assert run("test", write_recipe(tmp_path), root, *flags) == 0
    said = capsys.readouterr().out
    assert "agreement" in said
    for empty in ("accuracy", "relative", "evidence", "Oracle retention"):
        assert empty not in said


@pytest.mark.parametrize(("boxes", "there"), [(None, False), ([], False), ([[0, 0, 0.5, 1]], True)])
def test_the_oracle_is_a_baseline_only_where_there_are_boxes(
    boxes: list[list[float]] | None, there: bool, samples: list[Sample], tmp_path: Path
) -> None:
    """Without, it would be a second FixedRatio under a name that promises the best."""
    samples[0].images[0].save(tmp_path / "a.png")
    row = {"question": samples[0].question, "answer": "x", "image": "a.png"} | (
        {} if boxes is None else {"boxes": boxes}
    )
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    module = gl.EvaluationModule(
        "glimpse-tiny", after_layer=1, scorer=gl.scorers.Random(), policy=gl.policies.TopK(4), max_new_tokens=1
    )
    data = gl.VQAData(test=JSONL(str(tmp_path / "d.jsonl")), num_workers=0)
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path).test(module, data)
    assert ("Oracle" in module.summary.baselines) == there
