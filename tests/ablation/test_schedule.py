from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from glimpse_lightning.ablation import launch
from glimpse_lightning.ablation.cells import Cell
from glimpse_lightning.ablation.runs import CellFolders
from glimpse_lightning.ablation.schedule import Job, Slot, jobs, run_jobs, slots, visible_devices
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.run_folder import RECIPE


@pytest.mark.parametrize(
    ("devices", "per_cell", "wanted"),
    [
        ([], 1, [()]),
        ([], 4, [()]),  # a CPU has no devices to count
        (["0"], 1, [("0",)]),
        (["0", "1", "2"], 1, [("0",), ("1",), ("2",)]),
        (["4", "5", "6", "7"], 2, [("4", "5"), ("6", "7")]),
        (["0", "1", "2"], 2, [("0", "1")]),
    ],
)
def test_slots(devices: list[str], per_cell: int, wanted: list[Slot]) -> None:
    assert slots(devices, per_cell) == wanted


def test_too_few_devices() -> None:
    with pytest.raises(GlimpseError, match="= 4 visible GPUs, but there are 2"):
        slots(["0", "1"], 4)


def test_cells_that_share_go_together_as_evenly_as_can_be() -> None:
    cells = {"a1": "a", "f1": None, "a2": "a", "b1": "b", "a3": "a", "f2": None}
    assert jobs(cells, 1) == [("a1", "a2", "a3"), ("f1",), ("b1",), ("f2",)]
    assert jobs(cells, 2) == [("a1", "a2"), ("a3",), ("f1",), ("b1",), ("f2",)]
    assert jobs({}, 2) == []


def test_jobs_run_at_once_but_never_on_the_same_slot() -> None:
    busy: set[Slot] = set()
    most, ran, lock = 0, [], threading.Lock()

    def run(job: Job, slot: Slot) -> None:
        nonlocal most
        with lock:
            assert slot not in busy
            busy.add(slot)
            most = max(most, len(busy))
            ran.append(job)
        time.sleep(0.02)
        with lock:
            busy.remove(slot)

    wanted = [(str(index),) for index in range(7)]
    run_jobs(wanted, [("0", "1"), ("2", "3"), ("4", "5")], run)
    assert sorted(ran) == wanted
    assert most == 3


def test_what_a_job_raises_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        run_jobs([("a",), ("b",)], [()], lambda job, slot: 1 / 0)


def test_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-x")
    assert visible_devices() == ["3", "5", "GPU-x"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []


def cell(name: str, mode: str = "test") -> Cell:
    return Cell(name, mode, {}, {"model": {}}, {})


def test_jobs_as_commands() -> None:
    cells, folders = {name: cell(name, "fit") for name in "ab"}, CellFolders(Path("out/x"))
    settings = Path("out/x/ablation.yaml")
    program = [sys.executable, "-m", "glimpse_lightning"]
    assert launch.command(("a", "b"), cells, folders, settings) == [
        *program, "ablate", "--config", str(settings), "--cells", "a", "b"
    ]  # fmt: skip
    assert launch.command(("a",), cells, folders, settings) == [
        *program, "fit", "--config", "out/x/cells/a.yaml", "--trainer.default_root_dir", "out/x"
    ]  # fmt: skip


def test_each_process_sees_its_slot_and_the_dead_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in processes: ``good`` leaves a finished run that says which GPUs it saw, ``bad`` dies."""
    cells, folders = {name: cell(name) for name in ("good", "bad")}, CellFolders(tmp_path)
    for each in cells.values():
        folders.write_recipe(each)
    program = (
        "import os, pathlib, sys\n"
        "print('about to fail'); sys.exit(3) if sys.argv[1] == 'bad' else None\n"
        "run = pathlib.Path(sys.argv[2]) / 'test_0'; run.mkdir(parents=True)\n"
        f"(run / {RECIPE!r}).write_text(pathlib.Path(sys.argv[3]).read_text())\n"
        "(run / 'results.json').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    monkeypatch.setattr(launch, "POLL_S", 0.01)
    monkeypatch.setattr(
        launch,
        "command",
        lambda job, *_: [
            sys.executable, "-c", program, job[0], str(folders.folder(cells[job[0]])),
            str(folders.recipe(cells[job[0]])),
        ],
    )  # fmt: skip
    planned, places = jobs(dict.fromkeys(cells), 2), slots(["4", "5", "6", "7"], 2)
    reports: list[int] = []
    launch.run_on_slots(planned, places, cells, folders, tmp_path / "a.yaml", lambda: reports.append(1))
    run = folders.finished(cells["good"])
    assert run is not None
    assert (run / "results.json").read_text() in ("4,5", "6,7")
    assert folders.error(cells["good"]) is None
    error = folders.error(cells["bad"])
    assert error is not None
    assert "status 3" in error
    assert "about to fail" in error
    assert len(reports) >= 2


def test_slurm_script() -> None:
    script = launch.slurm_script([("a", "b"), ("c",)], "zoo", Path("out/ablation.yaml"), Path("out"))
    for line in ("#SBATCH --array=0-1", "#SBATCH --gpus-per-task=1", "#SBATCH --job-name=zoo", "  'a b'", "  c"):
        assert line in script.splitlines()
    assert script.rstrip().endswith("--cells ${tasks[$SLURM_ARRAY_TASK_ID]}")
    assert os.getcwd() in script


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GlimpseError, match=r"glimpse-lightning\[ray\]"):
        launch.run_on_ray([], 1, {}, CellFolders(tmp_path), tmp_path, lambda: None)
