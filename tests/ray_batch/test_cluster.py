"""Batch jobs on a local Ray cluster with two actors (`nox -s ray`): every row is answered, and answered once."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from batch_pages import JOB, alone, rows, write_jsonl, write_parquet
from test_docs import COMMANDS, code

import glimpse_lightning as gl
from glimpse_lightning.__main__ import main

ray = pytest.importorskip("ray", reason="needs the extra `ray`: nox -s ray")
pytest.importorskip("ray.data", reason="needs the extra `ray`: nox -s ray")

from glimpse_lightning.integrations.ray.batch import Workers, run_batch  # noqa: E402
from glimpse_lightning.integrations.ray.source import find_source  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TWO = Workers(actors=2, batch_size=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of an output by id, none of which may be there twice."""
    found = [row for part in folder.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    assert len({row["id"] for row in found}) == len(found)
    return {str(row["id"]): row for row in found}


def are_alone(found: dict[str, dict[str, Any]], number: int, prefix: str = "q") -> bool:
    """Whether there are all rows, with the answers that each gets alone."""
    wanted = {f"{prefix}{place}": answer for place, answer in enumerate(alone(number))}
    return {name: (row["answer"], row["kept"], row["total"]) for name, row in found.items()} == wanted


def workers_of_ray() -> dict[int, str]:
    """Titles of the processes that this test's cluster runs, by their ids."""
    found, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue

    def ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and ours(parents[process]))

    return {process: title for process, title in found.items() if "ray::" in title and ours(process)}


def kill_an_actor_after_the_first_part(output: Path, killed: list[int]) -> None:
    while not any(output.glob("part-*")):
        time.sleep(0.01)
    process = next(process for process, title in workers_of_ray().items() if "Answerer" in title)
    os.kill(process, signal.SIGKILL)
    killed.append(process)


def test_a_killed_actor_loses_no_row_and_answers_none_twice(tmp_path: Path) -> None:
    table, killed = rows(40), list[int]()
    table[7]["image"] = {"bytes": b"no image", "path": None}
    source = write_parquet(tmp_path / "q.parquet", table)
    threading.Thread(
        target=kill_an_actor_after_the_first_part, args=(tmp_path / "out", killed), daemon=True
    ).start()  # fmt: skip
    summary = run_batch(JOB, str(source), tmp_path / "out", TWO)
    assert killed
    found = answers(tmp_path / "out")
    assert (summary.counts.answered, summary.counts.failed, summary.resumed) == (39, 1, 0)
    assert (found["q7"]["answer"], "not a readable image" in found["q7"]["error"]) == (None, True)
    found["q7"] |= dict(zip(("answer", "kept", "total"), alone(40)[7], strict=True))
    assert are_alone(found, 40)
    assert summary.counts.total == sum(total for _, _, total in alone(40)) - alone(40)[7][2]


def test_a_stopped_job_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command of the page: half of its parts are there, and then all of them."""
    write_jsonl(tmp_path, 16)
    monkeypatch.chdir(tmp_path)
    (printed,) = (command for command in COMMANDS if command.startswith("batch "))
    command = [*shlex.split(printed), "--max_new_tokens", "8"]
    assert main([*command, "--actors", "2", "--batch_size", "2"]) == 0
    assert "16 answered, 0 failed, 0 resumed. " in capsys.readouterr().out
    parts = sorted((tmp_path / "answers").glob("part-*"))
    kept = sum(pq.read_metadata(part).num_rows for part in parts[::2])
    for part in parts[1::2]:
        part.unlink()
    before = {part: part.stat().st_mtime_ns for part in parts[::2]}
    assert main([*command, "--batch_size", "3"]) == 0
    assert f"{16 - kept} answered, 0 failed, {kept} resumed. " in capsys.readouterr().out
    assert are_alone(answers(tmp_path / "answers"), 16, prefix="")
    assert before == {part: part.stat().st_mtime_ns for part in before}
    assert answers(tmp_path / "answers")["3"]["image"] == "3.png"  # paths stay, and files do not
    assert main(command) == 0
    assert "0 answered, 0 failed, 16 resumed." in capsys.readouterr().out
    assert main([*command, "--retention", "0.5"]) == 1
    assert "`retention` was 0.25 and is 0.5" in capsys.readouterr().err


def test_the_pipeline_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "questions.parquet", rows(9))
    (block,) = (block for block in code("deploy.md") if "map_batches" in block)
    space: dict[str, Any] = {}
    here = str(tmp_path / "questions.parquet")  # as actors work in the folder in which the cluster was started
    exec(compile(block.replace("questions.parquet", here), "deploy.md", "exec"), space)
    assert "'input_answer'" in capsys.readouterr().out
    assert are_alone({row["id"]: row for row in space["table"].take_all()}, 9)


def test_a_folder_that_datasets_has_saved(tmp_path: Path) -> None:
    """Its rows go to the cluster in pieces, and come to the actors as those of a Parquet file."""
    datasets.Dataset.from_list(rows(9)).save_to_disk(tmp_path / "saved")
    source = find_source(str(tmp_path / "saved"))
    assert source.holding_files(["image", "question"]) == ["image"]
    assert sorted(source.dataset().take_all(), key=lambda row: row["id"]) == rows(9)


def test_a_dataset_on_the_hub_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*names: str, **options: Any) -> datasets.Dataset:
        asked.append((*names, options["split"]))
        return datasets.Dataset.from_list(rows(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert find_source("me/pages", subset="english").ids("id") == ["q0", "q1"]
    assert find_source("me/pages", split="test").holding_files(["image"]) == ["image"]
    assert asked == [("me/pages", "english", "train"), ("me/pages", None, "test")]


def test_an_actor_has_a_gpu_or_a_share_of_one_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4.0, "CPU": 8.0})
    assert Workers().on_cluster() == (4, {"num_gpus": 1.0, "num_cpus": 0})
    assert Workers(num_gpus=0.5).on_cluster() == (8, {"num_gpus": 0.5, "num_cpus": 0})
    assert Workers(num_gpus=2, actors=1).on_cluster() == (1, {"num_gpus": 2, "num_cpus": 0})
    assert Workers(num_gpus=0).on_cluster() == (1, {"num_cpus": 1})


def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "q.parquet", rows(2))
    with pytest.raises(gl.GlimpseError, match="nowhere"):
        run_batch(replace(JOB, backbone=str(tmp_path / "nowhere")), str(source), tmp_path / "out", TWO)


def test_ids_are_there_and_differ(tmp_path: Path) -> None:
    def refused(change: Callable[[list[dict[str, Any]]], None], message: str) -> None:
        table = rows(4)
        change(table)
        source = write_parquet(tmp_path / "q.parquet", table)
        with pytest.raises(gl.GlimpseError, match=message):
            run_batch(JOB, str(source), tmp_path / "out", TWO)

    refused(lambda table: table[3].update(id="q1"), r"several rows have the id 'q1' in column `id`")
    refused(lambda table: table[3].update(id=None), r"1 row of 4 have none in column `id`")
    refused(lambda table: [row.pop("id") for row in table] and None, "expected a column `id`")
    assert not (tmp_path / "out").exists()


def test_what_cannot_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    source = str(write_parquet(tmp_path / "q.parquet", rows(2)))
    with pytest.raises(gl.GlimpseError, match=r"Expected a cluster with 10 CPUs .* but it has 4. Lower `--actors`"):
        run_batch(JOB, source, tmp_path / "out", Workers(actors=9))
    with pytest.raises(gl.GlimpseError, match=r"Expected a cluster with 1 GPUs"):
        run_batch(JOB, source, tmp_path / "out", Workers(actors=2, num_gpus=0.5))
    with pytest.raises(gl.GlimpseError, match="Expected `actors` to be at least 1"):
        Workers(actors=0)
    with pytest.raises(gl.GlimpseError, match="no such file or folder"):
        run_batch(JOB, "nowhere.parquet", tmp_path / "out", TWO)
    lines = ('{"id": 1, "tag": "x"}', '{"id": 2, "tag": ["y"]}')
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    with pytest.raises(gl.GlimpseError, match="cells of one type in column `tag`"):
        find_source(str(tmp_path / "mixed.jsonl"))
