"""Starting an ablation's cells: in this process, in one process per GPU slot, on a Ray cluster, or under SLURM."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glimpse_lightning.ablation.cells import Cell
from glimpse_lightning.ablation.runs import CellFolders, CellRunner
from glimpse_lightning.ablation.schedule import Job, Slot, run_jobs
from glimpse_lightning.cli.trainer_runs import RUN_FOLDER
from glimpse_lightning.runtime.errors import GlimpseError

POLL_S = 0.5
LAST_LINES = 20


def command(job: Job, cells: Mapping[str, Cell], folders: CellFolders, settings: Path) -> list[str]:
    """The command line that runs a job in a process of its own.

    One cell is an ordinary run: on several devices Lightning starts its command line again for each.
    """
    program = [sys.executable, "-m", "glimpse_lightning"]
    if len(job) > 1:
        return [*program, "ablate", "--config", str(settings), "--cells", *job]
    cell = cells[job[0]]
    recipe = str(folders.recipe(cell))
    return [*program, cell.mode, "--config", recipe, "--trainer.default_root_dir", str(folders.root)]


def run_process(
    job: Job,
    cells: Mapping[str, Cell],
    folders: CellFolders,
    settings: Path,
    environment: Mapping[str, str],
    report: Callable[[], None] = lambda: None,
    cwd: str | None = None,
) -> None:
    """Run a job in a process of its own; cells that it leaves unfinished without an error are recorded as failed."""
    for name in job:
        folders.begin(cells[name])
    log = folders.root / "logs" / f"{job[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != RUN_FOLDER}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(job, cells, folders, settings),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**inherited, **environment},
            cwd=cwd,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                report()
        finally:
            process.terminate()  # ends it after an interrupt; has no effect otherwise
            process.wait()
    for name in job:
        cell = cells[name]
        if folders.finished(cell) is None and folders.error(cell) is None:
            last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])
            folders.fail(cell, f"Its process ended with status {process.returncode}; the end of {log}:\n{last}\n")
    report()


def run_here(
    jobs: Sequence[Job], cells: Mapping[str, Cell], runner: CellRunner, report: Callable[[], None] = lambda: None
) -> None:
    """Run all jobs one after another in this process."""
    for job in jobs:
        runner.run([cells[name] for name in job], lambda cell: report())


def run_on_slots(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    cells: Mapping[str, Cell],
    folders: CellFolders,
    settings: Path,
    report: Callable[[], None],
) -> None:
    """Run each job in a process of its own that sees only the GPUs of its slot."""

    def run(job: Job, slot: Slot) -> None:
        run_process(job, cells, folders, settings, {"CUDA_VISIBLE_DEVICES": ",".join(slot)}, report)

    run_jobs(jobs, slots, run)


def run_on_ray(
    jobs: Sequence[Job],
    devices_per_cell: int,
    cells: Mapping[str, Cell],
    folders: CellFolders,
    settings: Path,
    report: Callable[[], None],
) -> None:
    """Spread jobs over a Ray cluster whose machines share the file system; each takes ``devices_per_cell`` GPUs.

    Raises:
        GlimpseError: where Ray is not installed.
    """
    here = os.getcwd()
    try:
        import ray
    except ImportError:
        raise GlimpseError(
            "`--launcher ray` needs Ray, which is not installed: `pip install 'glimpse-lightning[ray]'`."
        ) from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        gpus = devices_per_cell if ray.cluster_resources().get("GPU") else 0
        remote: Any = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=0)(run_process)
        waiting = [remote.remote(job, dict(cells), folders, settings, {}, cwd=here) for job in jobs]
        while waiting:
            ended, waiting = ray.wait(waiting, timeout=POLL_S)
            ray.get(ended)  # raises a job's error
            report()
    finally:
        if started:
            ray.shutdown()


def slurm_script(jobs: Sequence[Job], name: str, settings: Path, log: Path) -> str:
    """An array script for ``sbatch``, one task with one GPU for each job; the tables are made later."""
    tasks = "\n".join(f"  {shlex.quote(' '.join(job))}" for job in jobs)
    python, config = shlex.quote(sys.executable), shlex.quote(str(settings.resolve()))
    return f"""\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{len(jobs) - 1}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --output={log.resolve()}/slurm_%A_%a.log
# Submit with `sbatch`; when all tasks are done, make the tables:
#   {python} -m glimpse_lightning ablate --config {config}
cd {shlex.quote(os.getcwd())}
tasks=(
{tasks}
)
exec {python} -m glimpse_lightning ablate --config {config} --cells ${{tasks[$SLURM_ARRAY_TASK_ID]}}
"""
