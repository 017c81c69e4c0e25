"""`predict` writes as it goes, goes on where it was stopped, and draws as many questions as it is told to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ranks import on_two_ranks
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.cli import main
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.training.module import PruningModule

RECIPE = """\
model:
  after_layer: 1
  scorer: AttentionRank
  policy: {class_path: KeepRatio, init_args: {ratio: 0.25}}
  max_new_tokens: 3
data:
  test: {class_path: JSONL, init_args: {path: d.jsonl, require_answers: false, on_error: raise}}
  eval_batch_size: 2
  num_workers: 0
trainer: {accelerator: cpu, enable_progress_bar: false}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    data = gl.GlyphVQA("test", 7, image_size=224)
    lines = []
    for index in range(7):
        data[index].images[0].save(tmp_path / f"{index}.png")
        lines.append(json.dumps({"id": f"q{index}", "question": data[index].question, "image": f"{index}.png"}))
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    return write_recipe(tmp_path, RECIPE.replace("d.jsonl", str(tmp_path / "d.jsonl")))


def folder(recipe: Path, number: int = 0) -> Path:
    return recipe.parent / "runs" / "small" / f"predict_{number}"


def predict(recipe: Path, *flags: str) -> int:
    return run("predict", recipe, recipe.parent / "runs", *flags)


def pictures(recipe: Path, number: int = 0) -> list[Path]:
    return list((folder(recipe, number) / "overlays").glob("*.png"))


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Killed(BaseException):
    """What a killed process looks like from inside."""


def dies_at(batch: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Questions of each batch that is asked, of which one raises."""
    step, asked = PruningModule.predict_step, list[list[str]]()

    def mortal(self: PruningModule, batch_of: Any, *args: Any) -> Any:
        asked.append([sample.id for sample in batch_of.samples])
        if len(asked) == batch + 1:
            raise error
        return step(self, batch_of, *args)

    monkeypatch.setattr(PruningModule, "predict_step", mortal)
    return asked


def test_a_stopped_run_goes_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line that was being written is written anew; the whole is as of a run that was never stopped."""
    asked = dies_at(2, Killed(), monkeypatch)
    with pytest.raises(Killed):
        predict(recipe)
    part = folder(recipe) / "answers.0.jsonl"
    assert [row["id"] for row in answers(part)] == ["q0", "q1", "q2", "q3"]
    with part.open("ab") as file:
        file.write('{"id": "q4", "question": "wh\u00e9'.encode()[:-1])
    assert predict(recipe) == 0
    assert asked[3:] == [["q4", "q5"], ["q6"]]
    assert not part.exists()
    assert predict(recipe) == 0  # finished: the next one is a new run
    assert answers(folder(recipe) / "answers.jsonl") == answers(folder(recipe, 1) / "answers.jsonl")
    assert len(pictures(recipe, 1)) == 7
    results = json.loads((folder(recipe) / "results.json").read_text())
    assert (results["n"], results["dataset"]) == (7, "JSONL")
    assert results["metrics"]["retention"] == pytest.approx(0.25, abs=1 / 64)


def test_half_a_line_of_a_rank_that_does_not_come_back(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two processes, stopped, and taken up by one."""
    dies_at(2, Killed(), monkeypatch)
    with pytest.raises(Killed):
        predict(recipe)
    (folder(recipe) / "answers.1.jsonl").write_text('{"id": "q4", "quest')
    assert predict(recipe) == 0
    assert sorted(row["id"] for row in answers(folder(recipe) / "answers.jsonl")) == [f"q{index}" for index in range(7)]
    assert json.loads((folder(recipe) / "results.json").read_text())["n"] == 7


def test_nothing_left_but_the_end(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glimpse_lightning.callbacks import AnswerWriter

    with monkeypatch.context() as context:
        context.setattr(AnswerWriter, "on_predict_end", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            predict(recipe, "--overlays", "0")
    assert predict(recipe, "--overlays", "0") == 0
    assert [row["id"] for row in answers(folder(recipe) / "answers.jsonl")] == [f"q{index}" for index in range(7)]
    assert not pictures(recipe)


def test_a_bad_row_loses_no_answer(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mended, the data are others, and so is the run; the answers stay where they are."""
    (recipe.parent / "5.png").write_bytes(b"no image")
    assert predict(recipe) == 1
    assert "d.jsonl, line 6" in capsys.readouterr().err
    assert len(answers(folder(recipe) / "answers.0.jsonl")) == 4
    capsys.readouterr()
    assert predict(recipe, "--data.test.on_error", "skip") == 0
    assert len(answers(folder(recipe, 1) / "answers.jsonl")) == 6
    assert "(6 answers; 1 row skipped, see results.json)." in " ".join(capsys.readouterr().out.split())


def test_as_many_pictures_as_wanted(recipe: Path) -> None:
    """All without a flag, and none where none are wanted: see above."""
    assert predict(recipe, "--overlays", "3") == 0
    assert len(pictures(recipe)) == 3


def test_one_question_is_answered_on_the_terminal(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("--image", str(recipe.parent / "0.png"), "--question", "which letter")
    assert predict(recipe, *ask) == 0
    said = capsys.readouterr().out
    (row,) = answers(folder(recipe) / "answers.jsonl")
    (picture,) = (folder(recipe) / "overlays").glob("*.png")
    assert row["answer"] in said
    assert "(1 answer)." in said
    assert f"Kept {row['kept']} of {row['total']} visual tokens ({row['kept'] / row['total']:.1%})." in said
    assert str(picture) in said.replace("\n", "")
    write_recipe(recipe.parent, "model: {max_new_tokens: 3}\ntrainer: {accelerator: cpu, enable_progress_bar: false}")
    assert predict(recipe, *ask) == 0
    assert "nothing prunes: the recipe names no pruner" in capsys.readouterr().out


def test_only_bad_rows_left(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe.parent / "6.png").write_bytes(b"no image")
    dies_at(3, Killed(), monkeypatch)
    with pytest.raises(Killed):
        predict(recipe, "--data.test.on_error", "skip")
    assert predict(recipe, "--data.test.on_error", "skip") == 0
    assert len(answers(folder(recipe) / "answers.jsonl")) == 6
    assert len(json.loads((folder(recipe) / "results.json").read_text())["skipped"]) == 1


def test_limits_are_of_the_whole_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies_at(1, Killed(), monkeypatch)
    limits = ("--trainer.limit_predict_batches", "2", "--overlays", "3")
    with pytest.raises(Killed):
        predict(recipe, *limits)
    assert predict(recipe, *limits) == 0
    assert [row["id"] for row in answers(folder(recipe) / "answers.jsonl")] == ["q0", "q1", "q2", "q3"]
    assert len(pictures(recipe)) == 3


class Twins(GlyphVQA):
    """Two questions of one name."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), id=f"image {index // 2}")


def test_two_questions_of_one_name_are_an_error(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins = ("--data.predict", "test_predict.Twins", "--data.predict.size", "4", "--data.predict.image_size", "224")
    assert predict(recipe, *twins) == 1
    assert "Two questions are called 'image 0'" in capsys.readouterr().err


def test_a_folder_of_images_gets_one_question(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One by one, other files left out; each answer names its picture."""
    images = [str(recipe.parent / f"{index}.png") for index in range(7)]
    assert predict(recipe, "--image", str(recipe.parent), "--question", "how many hearts?") == 0
    rows = answers(folder(recipe) / "answers.jsonl")
    assert [row["images"] for row in rows] == [[image] for image in images]
    assert {row["question"] for row in rows} == {"how many hearts?"}
    assert len(list((folder(recipe) / "overlays").iterdir())) == 7
    (recipe.parent / "none").mkdir()
    assert predict(recipe, "--image", str(recipe.parent / "none"), "--question", "how many?") == 1
    assert "there is none in it" in capsys.readouterr().err


def test_subfolders_with_images_are_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = recipe.parent / "photos"
    (photos / "paris").mkdir(parents=True)
    (photos / "empty").mkdir()
    (photos / "paris" / "1.png").write_bytes((recipe.parent / "1.png").read_bytes())
    assert predict(recipe, "--image", str(photos), "--question", "how many?") == 1
    assert "There are some in its subfolders (paris): name one of these." in capsys.readouterr().err
    (photos / "0.png").write_bytes((recipe.parent / "0.png").read_bytes())
    with pytest.warns(UserWarning, match=r"some hold images \(paris\)"):
        assert predict(recipe, "--image", str(photos), "--question", "how many?") == 0
    assert [row["id"] for row in answers(folder(recipe) / "answers.jsonl")] == ["0.png"]


def test_a_changed_image_is_asked_about_anew(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = recipe.parent / "photos"
    photos.mkdir()
    for index in range(4):
        (photos / f"{index}.png").write_bytes((recipe.parent / f"{index}.png").read_bytes())
    ask = ("--image", str(photos), "--question", "how many hearts?", "--data.eval_batch_size", "1")
    asked = dies_at(3, Killed(), monkeypatch)
    with pytest.raises(Killed):
        predict(recipe, *ask)
    Image.new("RGB", (112, 112)).save(photos / "1.png")
    assert predict(recipe, *ask) == 0
    assert asked[4:] == [["1.png"], ["3.png"]]
    rows = {row["id"]: row for row in answers(folder(recipe) / "answers.jsonl")}
    assert len(rows) == 4 == len(answers(folder(recipe) / "answers.jsonl"))
    assert (rows["1.png"]["total"], rows["0.png"]["total"]) == (16, 64)


def test_damaged_images_of_a_folder_are_left_out_by_name(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one, too, which is read before the model is."""
    photos = recipe.parent / "photos"
    photos.mkdir()
    whole = (recipe.parent / "0.png").read_bytes()
    for name, data in (("a.png", b"no image"), ("b.png", whole), ("c.png", whole[: len(whole) // 2]), ("d.png", whole)):
        (photos / name).write_bytes(data)
    assert predict(recipe, "--image", str(photos), "--question", "how many hearts?") == 0
    assert [row["id"] for row in answers(folder(recipe) / "answers.jsonl")] == ["b.png", "d.png"]
    assert sorted(path.name[0] for path in (folder(recipe) / "overlays").iterdir()) == ["b", "d"]
    skipped = json.loads((folder(recipe) / "results.json").read_text())["skipped"]
    assert [message.split(":")[0] for message in skipped] == [str(photos / "a.png"), str(photos / "c.png")]
    assert "2 answers; 2 rows skipped, see results.json" in " ".join(capsys.readouterr().out.split())


def test_a_table_without_answers_is_answered(recipe: Path) -> None:
    """`predict` reads no answers, so that none have to be there, whatever the class of the data."""
    table = recipe.parent / "q.csv"
    table.write_text("question,image\nhow many hearts?,0.png\nhow many stars?,1.png\n")
    lines = recipe.parent / "q.jsonl"
    lines.write_text('{"question": "how many hearts?", "image": "0.png"}')
    assert predict(recipe, "--data.predict", str(table)) == 0
    assert predict(recipe, "--data.predict", str(lines)) == 0
    said = [answers(folder(recipe, number) / "answers.jsonl") for number in (0, 1)]
    assert [row["images"] for row in said[0]] == [["0.png"], ["1.png"]]
    assert said[0][0]["answer"] == said[1][0]["answer"]


def test_an_answer_that_is_cut_off_is_marked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(recipe) == 0
    whole = {row["id"]: row for row in answers(folder(recipe) / "answers.jsonl")}
    cut = [name for name, row in whole.items() if row["cut_off"]]
    said = capsys.readouterr().out
    remark = (
        f"{len(cut)} of 7 answers were cut off at 3 tokens, the longest that `--model.max_new_tokens 3` lets them be"
    )
    assert (remark in said) == bool(cut)
    assert predict(recipe, "--model.max_new_tokens", "12") == 0
    longer = {row["id"]: row for row in answers(folder(recipe, 1) / "answers.jsonl")}
    for name, row in longer.items():
        assert not row["cut_off"]  # no answer of this data has 12 tokens
        assert row["answer"].startswith(whole[name]["answer"])
        assert (row["answer"] == whole[name]["answer"]) or whole[name]["cut_off"]
    assert predict(recipe, "--model.max_new_tokens", "1") == 0
    assert all(row["cut_off"] for row in answers(folder(recipe, 2) / "answers.jsonl"))
    assert "7 of 7 answers were cut off" in capsys.readouterr().out


CUT = RECIPE.replace(
    """  after_layer: 1
  scorer: AttentionRank
  policy: {class_path: KeepRatio, init_args: {ratio: 0.25}}
""",
    "  resolution: {ratio: 0.25}\n",
)


def test_shrunk_images_are_counted_against_whole_ones(recipe: Path) -> None:
    path = write_recipe(recipe.parent, CUT.replace("d.jsonl", str(recipe.parent / "d.jsonl")))
    assert predict(path) == 0
    assert {(row["kept"], row["total"]) for row in answers(folder(path) / "answers.jsonl")} == {(16, 64)}


TRAINED = """\
model:
  after_layer: 1
  scorer: {class_path: VIP, init_args: {vision_layers: [1], attention_dim: 16, condition_dim: 16, heads: 2}}
  policy: Threshold
  objective: KL
  max_new_tokens: 3
  test_after_fit: false
data:
  train: {class_path: GlyphVQA, init_args: {split: train, size: 8, image_size: 224}}
  test: {class_path: JSONL, init_args: {path: d.jsonl, require_answers: false}}
  batch_size: 2
  eval_batch_size: 2
  num_workers: 0
trainer: {accelerator: cpu, enable_progress_bar: false, max_steps: 1, limit_val_batches: 0}
"""


def test_a_run_goes_on_with_the_weights_that_it_began_with(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fit in between has other answers, which belong to another run."""
    path = write_recipe(recipe.parent, TRAINED.replace("d.jsonl", str(recipe.parent / "d.jsonl")))
    assert run("fit", path, recipe.parent / "runs") == 0
    with monkeypatch.context() as context:
        dies_at(2, Killed(), context)
        with pytest.raises(Killed):
            predict(path)
    assert run("fit", path, recipe.parent / "runs", "--seed_everything", "5") == 0
    assert predict(path) == 0
    assert len(answers(folder(path, 1) / "answers.jsonl")) == 7
    assert not (folder(path) / "answers.jsonl").exists()


def _two(recipe: Path) -> None:
    os.environ["GLIMPSE_RUN_FOLDER"] = str(folder(recipe))
    assert predict(recipe, "--trainer.devices", "2", "--trainer.strategy", "ddp") == 0


def test_two_ranks_answer_every_question_once(recipe: Path) -> None:
    on_two_ranks(_two, recipe.parent, recipe)
    assert predict(recipe) == 0
    one, two = ({row["id"]: row for row in answers(folder(recipe, n) / "answers.jsonl")} for n in (1, 0))
    assert one == two
    assert len(answers(folder(recipe) / "answers.jsonl")) == 7


def test_an_image_given_twice_is_not_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "--config", "methods/fastv", "--question", "what"]
    assert main([*asked, "--image", "a.png", "--image=b.png"]) == 1
    assert "Expected `--image` once, but got it 2 times." in capsys.readouterr().err
    assert main([*asked, "--image", "a.png", "b.png"]) == 1
    assert "one question about all; `--image FOLDER` asks about each" in capsys.readouterr().err
