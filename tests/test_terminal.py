"""What is found is written before it is printed, and printing may fail."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.evaluation.chosen_metric import FILE, read_choices
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import Forgiving, counted, filled, forgiving, plain, show

NAMES = ["[/INST]", "[red]x[/red]", "[list]", "a:smile:b", "\\[b]"]


class Gone(io.TextIOBase):
    encoding = "ascii"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "gone"), OSError(28, "full"), ValueError("closed")])
def test_a_stream_that_has_gone_is_no_error(error: Exception) -> None:
    stream = Forgiving(Gone(error))
    print("text", file=stream, flush=True)
    stream.writelines(["a", "b"])


def test_letters_that_a_terminal_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print("π ≤ 4", file=Forgiving(ascii_only))
    assert raw.getvalue() == b"? ? 4\n"


def test_a_users_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.add_column("name")
    for name in NAMES:
        table.add_row(plain(name))
    show(table, *NAMES)
    said = capsys.readouterr().out
    assert all(said.count(name) == 2 for name in NAMES)


def test_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout
    with forgiving():
        assert isinstance(sys.stdout, Forgiving)
    assert sys.stdout is before
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    with forgiving():
        assert sys.stdout is None


TEST = ("--model.baselines", "[]", "--data.num_workers", "0", "--trainer.callbacks", "[]", "--data.test_size", "2")


def rows(folder: Path, family: str) -> Path:
    sample = gl.GlyphVQA("test", 1, image_size=224)[0]
    sample.images[0].save(folder / "a.png")
    row = {"question": sample.question, "answer": sample.answers[0], "image": "a.png", "family": family}
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(2)))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("family", ["[/INST]", "[list]"])
def test_names_in_brackets(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.test", "JSONL", "--data.test.path", str(rows(tmp_path, family)), *TEST]
    assert gl.cli.main(["test", "--config", "attention_rank", "--trainer.default_root_dir", str(tmp_path), *flags]) == 0
    assert family in capsys.readouterr().out
    assert (tmp_path / "attention_rank" / "test_0" / "results.json").is_file()


def test_a_closed_pipe_loses_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "glimpse_lightning", "test", "--config", "attention_rank", *TEST]
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [*command, "--trainer.default_root_dir", str(tmp_path)], stdout=pipe, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "attention_rank" / "test_0" / "results.json").is_file()


def test_predict_says_the_answer_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(tmp_path, "")
    recipe = write_recipe(tmp_path, (Path(gl.__file__).parents[1] / "recipes" / "attention_rank.yaml").read_text())
    flags = ["--image", str(tmp_path / "a.png"), "--question", "which letter", "--trainer.logger", "false"]
    assert run("predict", recipe, tmp_path, *flags) == 0
    said = capsys.readouterr().out
    path = tmp_path / "small" / "predict_0" / "answers.jsonl"
    assert json.loads(path.read_text())["answer"] in said
    assert f"Written: {path} (1 answer)." in said.replace("\n", "")


def test_another_tools_metrics_are_passed_over(tmp_path: Path) -> None:
    for text in ('{"loss": 0.1}', "[1]", '{"train": {"loss": 1}}'):
        (tmp_path / FILE).write_text(text)
        assert read_choices(tmp_path) == {}
    for text in ("{", '{"task": {"name": "ANLS", "colour": "red"}}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(GlimpseError, match="expected a metric's"):
            read_choices(tmp_path)


def test_columns_without_a_figure_are_left_out() -> None:
    rows = [["a", "-", "-", "1"], ["b", "-", "2", "-"]]
    assert filled(["name", "x", "y", "z"], rows) == (["name", "y", "z"], [["a", "-", "1"], ["b", "2", "-"]])
    assert filled(["name", "x", "y", "z"], rows, 2)[0] == ["name", "x", "y", "z"]


def test_a_single_thing_has_no_plural() -> None:
    assert [counted(number, "bad line") for number in (0, 1, 2)] == ["0 bad lines", "1 bad line", "2 bad lines"]
