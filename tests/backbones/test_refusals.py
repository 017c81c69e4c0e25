"""One guarded path from samples to tensors: what a processor refuses is said of the sample, and can be left out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ranks import on_two_ranks
from runs import run, scalars, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.refusals import collate_or_refuse, placeholders
from glimpse_lightning.callbacks import RunCheckpoints
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.raw_batch import RawBatch
from glimpse_lightning.data.sample import BLANK, Sample
from glimpse_lightning.objectives import KL
from glimpse_lightning.runtime.errors import RefusedSamplesError


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("glimpse-tiny")


def sample(name: str, size: tuple[int, int] = (56, 56), question: str = "What?", where: str = "") -> Sample:
    return Sample(name, 1, question, ["red"], [Image.new("RGB", size, "red")], where=where)


def test_the_sample_is_named_not_the_batch(backbone: Backbone) -> None:
    with pytest.raises(RefusedSamplesError, match=r"^d\.jsonl, line 2: .*aspect ratio.* mend it, or leave it out\.$"):
        backbone.collate([sample("a"), sample("b", (4000, 10), where="d.jsonl, line 2"), sample("c")])


@pytest.mark.parametrize("text", ["<|image_pad|>", "<|vision_start|>", "<|video_pad|>"])
def test_no_text_takes_an_images_place(backbone: Backbone, text: str) -> None:
    assert text in placeholders(backbone.model.config, backbone.processor)
    with pytest.raises(RefusedSamplesError, match=r"sample 'b': .*reads the place of an image; take it out") as error:
        backbone.collate([sample("a"), sample("b", question=f"What is in {text}?")])
    assert list(error.value.reasons) == [1]


@pytest.mark.parametrize("text", ["<|image_pad|>", "<|im_end|>"])
def test_no_answer_ends_in_its_middle(backbone: Backbone, text: str) -> None:
    """A target would stop there without a word."""
    with pytest.raises(RefusedSamplesError, match=r"sample 'b': .* in its answer"):
        backbone.collate([sample("a"), replace(sample("b"), answers=[f"left {text} right"])])


def test_all_of_a_batch_that_are_bad_are_found_at_once(backbone: Backbone) -> None:
    with pytest.raises(RefusedSamplesError) as error:
        backbone.collate([sample("a", (10, 4000)), sample("b"), sample("c", (4000, 10))])
    assert list(error.value.reasons) == [0, 2]


def test_an_error_that_no_sample_is_to_blame_for_stays_what_it_is() -> None:
    def broken(samples: Any) -> Batch:
        raise RuntimeError("no chat template")

    def together(samples: Any) -> Batch:
        if len(samples) > 1:
            raise RuntimeError("out of memory")
        return Batch({}, *[torch.zeros(1)] * 4, samples=list(samples))

    for collate, said in ((broken, "no chat template"), (together, "out of memory")):
        with pytest.raises(RuntimeError, match=said):
            collate_or_refuse(collate, [sample("a"), sample("b")], frozenset(), frozenset())


def test_what_is_left_out_does_not_change_the_rest() -> None:
    raw = RawBatch([sample("a"), sample("b"), sample("c")], [1.0, 1.0, 0.0], ["before"], on_error="skip")
    rest = raw.without({1: "b is bad", 2: "c is bad"})
    assert ([one.id for one in rest.samples], rest.weight, rest.skipped) == (["a"], [1.0], ["before", "b is bad"])
    none = raw.without({0: "a", 1: "b", 2: "c"})
    assert (none.samples, none.weight) == ([BLANK], [0.0])


def test_every_backbone_takes_the_blank_sample(backbone: Backbone) -> None:
    assert backbone.collate([BLANK]).inputs["input_ids"].shape[0] == 1


# -- whole runs ---------------------------------------------------------------------------------------------------

BAD = ("thin", "placeholder")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    Image.new("RGB", (112, 112), "red").save(tmp_path / "ok.png")
    Image.new("RGB", (4000, 10), "red").save(tmp_path / "thin.png")
    boxes = [[0.1, 0.1, 0.4, 0.4]]
    lines = [{"id": name, "question": "What?", "answer": "a", "image": "ok.png", "boxes": boxes} for name in "abcdef"]
    lines[1] |= {"id": "thin", "image": "thin.png"}
    lines[3] |= {"id": "placeholder", "question": "Which <|image_pad|>?"}
    lines[4] |= {"id": "own", "answer": "b"}
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


RECIPE = """\
model:
  after_layer: 1
  scorer: {scorer}
  policy: {{class_path: KeepRatio, init_args: {{ratio: 0.25}}}}
  {objective}
  baselines: []
  max_new_tokens: 3
data: {{batch_size: 1, num_workers: 0}}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  max_steps: 6
  log_every_n_steps: 1
  val_check_interval: 6
  check_val_every_n_epoch: null
"""


def command(
    name: str, folder: Path, rows: Path, on_error: str, splits: tuple[str, ...], *flags: str, **parts: str
) -> int:
    recipe = write_recipe(folder, RECIPE.format(**{"scorer": "AttentionRank", "objective": "", **parts}))
    for split in splits:
        flags += (f"--data.{split}", "JSONL", f"--data.{split}.path", str(rows), f"--data.{split}.on_error", on_error)
    return run(name, recipe, folder / "runs", *flags)


def predictions(folder: Path) -> dict[str, Any]:
    lines = (folder / "runs/small/test_0/predictions.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize("size", ["1", "4"])
def test_a_test_goes_on_without_them(rows: Path, tmp_path: Path, size: int) -> None:
    """The others' figures are those that they have alone."""
    assert command("test", tmp_path, rows, "skip", ("test",), "--data.eval_batch_size", str(size)) == 0
    results = json.loads((tmp_path / "runs/small/test_0/results.json").read_text())
    assert results["n"] == 4
    assert [message.split(": ")[0][-6:] for message in results["skipped"]] == ["line 2", "line 4"]
    alone = rows.with_name("good.jsonl")
    alone.write_text("".join(line for line in rows.read_text().splitlines(True) if not any(bad in line for bad in BAD)))
    (tmp_path / "alone").mkdir()
    assert command("test", tmp_path / "alone", alone, "raise", ("test",), "--data.eval_batch_size", "1") == 0
    found, wanted = predictions(tmp_path), predictions(tmp_path / "alone")
    assert found.keys() == wanted.keys()
    for name, row in found.items():
        assert row == wanted[name] | {"kl": pytest.approx(wanted[name]["kl"], abs=1e-5)}


def test_a_test_names_one(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("test", tmp_path, rows, "raise", ("test",)) == 1
    assert "d.jsonl, line 4: '<|image_pad|>' stands in its question" in " ".join(capsys.readouterr().err.split())


SCORER = "{class_path: VIP, init_args: {vision_layers: [1], attention_dim: 16, condition_dim: 16, heads: 2}}"
TRAINING = {"scorer": SCORER, "objective": "objective: KL"}


def test_nothing_but_refused_samples_is_no_training(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = rows.with_name("only.jsonl")
    only.write_text("".join(line for line in rows.read_text().splitlines(True) if "thin" in line))
    assert command("fit", tmp_path, only, "skip", ("train",), "--trainer.limit_val_batches", "0", **TRAINING) == 1
    assert "Expected at least one usable sample, but all are bad" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs/small/fit_0/trained").exists()


class Killed(BaseException):
    """What a killed process looks like from inside."""


def test_a_fit_that_goes_on_knows_what_was_skipped_before(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--trainer.limit_val_batches", "0", "--model.test_after_fit", "false")
    save = RunCheckpoints._save

    def save_then_die(self: RunCheckpoints, trainer: Any) -> None:
        save(self, trainer)
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(RunCheckpoints, "_save", save_then_die)
        with pytest.raises(Killed):
            command("fit", tmp_path, rows, "skip", ("train",), *flags, **TRAINING)
    assert command("fit", tmp_path, rows, "skip", ("train",), *flags, **TRAINING) == 0
    assert len(json.loads((tmp_path / "runs/small/fit_0/results.json").read_text())["skipped"]) == 2


def _two(folder: Path, rows: Path) -> None:
    os.environ["GLIMPSE_RUN_FOLDER"] = str(folder / "runs/small/test_0")
    flags = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert command("test", folder, rows, "skip", ("test",), *flags) == 0


def test_two_ranks_name_what_either_skipped(rows: Path, tmp_path: Path) -> None:
    on_two_ranks(_two, tmp_path, tmp_path, rows)
    results = json.loads((tmp_path / "runs/small/test_0/results.json").read_text())
    assert (results["n"], len(results["skipped"])) == (4, 2)


def test_a_blank_batch_moves_no_budget(backbone: Backbone) -> None:
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, scorer, gl.policies.Threshold())]))
    batch = backbone.collate([BLANK])
    batch.weight = torch.zeros(1)
    objective = KL()
    result = objective.step(model, batch)
    assert float(result.logs["retention"]) == 0
    assert objective.remarks() == []


def test_training_goes_on_without_them(rows: Path, tmp_path: Path) -> None:
    """A batch of nothing else trains nothing."""
    scorer = "{class_path: VIP, init_args: {vision_layers: [1], attention_dim: 16, condition_dim: 16, heads: 2}}"
    splits = ("train", "val", "test")
    assert command("fit", tmp_path, rows, "skip", splits, scorer=scorer, objective="objective: Mask") == 0
    assert len(json.loads((tmp_path / "runs/small/fit_0/results.json").read_text())["skipped"]) == 2
    log = scalars(tmp_path / "runs/small/fit_0")["train/loss"]
    assert len(log) == 6
    assert sum(value == 0 for value in log.values()) == 2


def test_samples_share_the_words_of_their_dataset() -> None:
    one = GlyphVQA("test", 1, image_size=224)[0]
    assert one.place == f"sample {one.id!r}"
    assert replace(one, where="t.csv, row 3").place == "t.csv, row 3"
