"""Answers to batches of rows, and mistakes that are found before a cluster starts; none of it needs Ray."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batch_pages import JOB, alone, pages, png, rows

import glimpse_lightning as gl
from glimpse_lightning.__main__ import main
from glimpse_lightning.integrations.ray.answerer import Answerer
from glimpse_lightning.integrations.ray.claim import claim
from glimpse_lightning.integrations.ray.job import BatchJob
from glimpse_lightning.serving.command import pruner_of


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(JOB)


def said(table: pa.Table) -> list[tuple[Any, ...]]:
    return [(row["answer"], row["kept"], row["total"]) for row in table.to_pylist()]


def test_answers_are_those_of_generate_one_by_one(answerer: Answerer) -> None:
    table = answerer(pa.Table.from_pylist(rows(12)))
    assert said(table) == alone(12)
    assert table["error"].null_count == 12
    assert table["input_answer"].to_pylist() == [page.answers[0] for page in pages(12)]


def test_rows_that_cannot_be_read_leave_the_others_alone(answerer: Answerer) -> None:
    table = rows(8)
    table[1]["image"] = {"bytes": table[1]["image"]["bytes"][:400], "path": None}
    table[2]["question"] = None
    table[3]["image"] = None
    table[5]["question"] = "what is in <|image_pad|>"  # the processor's placeholder
    found = answerer(pa.Table.from_pylist(table)).to_pylist()
    for place, part in {
        1: "truncated or damaged",
        2: "expected a text",
        3: "expected an image",
        5: "<|image_pad|>",
    }.items():
        assert part in found[place]["error"]
        assert f"'q{place}'" in found[place]["error"]
        assert (found[place]["answer"], found[place]["kept"], found[place]["total"]) == (None, None, None)
    for place in (0, 4, 6, 7):
        assert found[place]["answer"] == alone(8)[place][0]
        assert found[place]["error"] is None


def test_an_image_is_a_path_within_the_folder_a_file_or_several(tmp_path: Path) -> None:
    first, second = pages(2)
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "secret.png"):
        (tmp_path / name).write_bytes(png(first))
    images: list[Any] = [["a.png"], ["../secret.png"], [str(tmp_path / "secret.png")], ["a.png", "a.png"], ["none.png"]]
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    images.append(["link.png"])
    table = pa.table({"id": [*range(len(images))], "question": [first.question] * len(images), "images": images})
    found = Answerer(replace(JOB, root=str(tmp_path / "in")))(table).to_pylist()
    assert [row["total"] for row in found] == [alone(1)[0][2], None, None, 2 * alone(1)[0][2], None, None]
    assert found[0]["answer"] == alone(1)[0][0]
    assert all("leaves the folder" in found[place]["error"] for place in (1, 2, 5))
    assert "no such image" in found[4]["error"]
    plain = pa.table({"id": ["x"], "question": [second.question], "image": [png(second)]})
    assert said(Answerer(JOB, without=["image"])(plain)) == alone(2)[1:]
    assert Answerer(JOB, without=["image"])(plain).column_names == [
        "id",
        "question",
        "answer",
        "kept",
        "total",
        "error",
    ]


def test_draws_depend_on_the_id_and_not_on_the_batch() -> None:
    job = BatchJob("glimpse-tiny", recipe="methods/random", retention=0.1, max_new_tokens=8)
    table, drawn = pa.Table.from_pylist(rows(8)), Answerer(job)
    assert said(drawn(table.slice(3, 4))) == said(drawn(table))[3:7]


def test_columns_and_wording_may_have_other_names(answerer: Answerer) -> None:
    table = pa.Table.from_pylist([{"nr": 1, "ask": pages(1)[0].question, "file": png(pages(1)[0])}])
    columns = {"id": "nr", "question": "ask", "image": "file"}
    assert said(Answerer(replace(JOB, columns=columns))(table)) == alone(1)
    with pytest.raises(gl.GlimpseError, match="Columns has no argument 'quest'"):
        replace(JOB, columns={"quest": "ask"})
    with pytest.raises(gl.GlimpseError, match="expected a column `question`"):
        answerer(table)


def test_an_output_belongs_to_one_job(tmp_path: Path) -> None:
    identity = JOB.identity(pruner_of(JOB))
    claim(tmp_path / "out", identity)
    claim(tmp_path / "out", identity)  # goes on
    other = replace(JOB, recipe="methods/random", max_new_tokens=9)
    with pytest.raises(gl.GlimpseError, match=r"another job: `max_new_tokens` was 8 and is 9, `recipe` was .*`stages`"):
        claim(tmp_path / "out", other.identity(pruner_of(other)))
    pq.write_table(pa.table({"id": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(gl.GlimpseError, match="holds other Parquet files"):
        claim(tmp_path, identity)
    with pytest.raises(gl.GlimpseError, match="it is a file"):
        claim(tmp_path / "mine.parquet", identity)


def test_a_pruner_trained_anew_is_another_job(tmp_path: Path) -> None:
    """Under the same folder's name."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        stage = gl.PruneStage(1, gl.scorers.VIP(), gl.policies.KeepRatio(0.2))
        model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        job = BatchJob("glimpse-tiny", pruner=str(gl.save_pruner(model.pruner, tmp_path / "pruner")))
        found.append(job.identity(pruner_of(job)))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"stages"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--recipe methods/fastv --pruner somewhere", "Expected either `--pruner` or `--recipe`"),
        ("--retention 0.5", "nothing is pruned"),
        ("--max_new_tokens 0", "Expected `--max_new_tokens` to be at least 1"),
        ("--batch_sise 4", "Did you mean --batch_size?"),
    ],
)
def test_a_wrong_option_is_refused_by_name(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`: nox -s ray")
    assert main(["batch", "--input", "q.jsonl", "--output", "out", "--backbone", "glimpse-tiny", *flags.split()]) == 1
    assert message in capsys.readouterr().err


def test_without_ray_the_remedy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert main(["batch", "--input", "q.jsonl", "--output", "out", "--backbone", "glimpse-tiny"]) == 1
    assert "pip install 'glimpse-lightning[ray]'" in capsys.readouterr().err
