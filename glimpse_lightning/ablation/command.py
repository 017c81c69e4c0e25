"""The command line of ``ablate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from glimpse_lightning.ablation import launch, report
from glimpse_lightning.ablation.cells import Cell, cells
from glimpse_lightning.ablation.latex import origin
from glimpse_lightning.ablation.plots import write_plots
from glimpse_lightning.ablation.rows import Row, read_rows
from glimpse_lightning.ablation.runs import CellFolders, CellRunner, checked, process_key
from glimpse_lightning.ablation.schedule import jobs, slots, visible_devices
from glimpse_lightning.ablation.settings import UNNAMED, Settings, read
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.cli.packaged_recipes import recipe_file
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.whole_files import write_text

LAUNCHERS = ("local", "ray", "slurm")
FLAGS = ("base", "mode", "pruner", "limit", "devices_per_cell", "output")
SETTINGS = "ablation.yaml"


def _parser() -> CommandParser:
    parser = CommandParser(
        "ablate",
        "Run one recipe many times, changed along axes, and compare. Finished cells are not run again.",
        "Options of a recipe stand in the ablation's file, where every cell has them (`set: {{{key}: VALUE}}`), or in "
        "the recipe that its `base` names. docs/ablate.md has an example.",
    )
    parser.add_argument("--config", required=True, help="the ablation's YAML, or the name of a packaged one")
    parser.add_argument("--base", help="recipe that every cell starts from")
    parser.add_argument("--mode", choices=("fit", "test"), help="fit (train, then test) or test")
    parser.add_argument(
        "--pruner",
        action="append",
        metavar="[NAME=]FOLDER",
        help="saved pruner for methods that ask for one; repeatable",
    )
    parser.add_argument("--limit", type=int, help="number of questions that each cell is tested on")
    parser.add_argument("--devices_per_cell", type=int, help="GPUs that a cell runs on")
    parser.add_argument("--output", help="parent of the ablation's folder (default: runs/ablations)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="slurm prints an array script")
    parser.add_argument("--tasks", type=int, default=8, help="ray, slurm: jobs for cells that share a process")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="run only these, in this process; no tables")
    parser.add_argument("--plot", nargs="+", metavar="METHOD", help="methods that the plots show (default: all)")
    parser.add_argument("--list", action="store_true", help="name the cells, and run nothing")
    return parser


def run(args: Sequence[str]) -> int:
    """Run an ablation; returns the exit status: 1 where a cell failed.

    Raises:
        GlimpseError: where the ablation, or any of its cells' recipes, cannot be understood; nothing has run then.
    """
    options = _parser().parse_args(list(args))
    flags = {name: getattr(options, name) for name in FLAGS}
    settings = read(recipe_file(options.config)).with_flags(flags | {"pruner": _pruners(options.pruner)})
    settings.check_pruners()
    every = {cell.name: cell for cell in cells(settings)}
    left_out = report.without_pruner(settings.left_out())
    if options.cells is None and left_out:
        print(f"note: {left_out}", file=sys.stderr)
    if options.list:
        print("\n".join(every))
        return 0
    _check_plotted(options.plot or (), every)
    chosen = _chosen(every, options.cells)
    folders = CellFolders(settings.root)
    found = checked(folders, [*every.values()] if options.cells is None else chosen)
    waiting = {cell.name: cell for cell in chosen if folders.finished(cell) is None}
    runner = CellRunner(folders, list(waiting.values()), found, settings.memory_gb * 1e9)
    if options.cells is not None:
        runner.run(list(waiting.values()))
        return int(any(folders.finished(cell) is None for cell in chosen))
    write_text(settings.root / SETTINGS, settings.text())
    # Cells on several devices have a process each: Lightning starts its command line again for every device.
    alone = settings.devices_per_cell > 1
    keys = {name: None if alone else process_key(cell, found[name].config) for name, cell in waiting.items()}
    if options.launcher == "slurm":
        _print_slurm(settings, [*jobs(keys, options.tasks)])
        return 0
    devices = slots(visible_devices(), settings.devices_per_cell)
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("cells", total=len(every), completed=len(every) - len(waiting))

        def show() -> None:
            done = [cell for cell in waiting.values() if folders.finished(cell) is not None]
            failed = [cell for cell in waiting.values() if folders.error(cell) is not None]
            text = f"cells ({len(failed)} failed)" if failed else "cells"
            progress.update(task, completed=len(every) - len(waiting) + len(done) + len(failed), description=text)

        if options.launcher == "ray":
            launch.run_on_ray(
                jobs(keys, options.tasks), settings.devices_per_cell, waiting, folders, settings.root / SETTINGS, show
            )
        elif devices == [()]:
            launch.run_here(jobs(keys, 1), waiting, runner, show)
        else:
            launch.run_on_slots(
                jobs(keys, len(devices)), devices, waiting, folders, settings.root / SETTINGS, show
            )  # fmt: skip
    return _report(
        settings, left_out, read_rows(list(every.values()), folders), origin("ablate", args), options.plot or ()
    )


def _pruners(flags: Sequence[str] | None) -> dict[str, str] | None:
    if flags is None:
        return None
    parts = [flag.partition("=") for flag in flags]  # a folder's name may have a "=" too, but hardly an identifier's
    return {name if equals and name.isidentifier() else UNNAMED: folder if equals and name.isidentifier() else flag
            for flag, (name, equals, folder) in zip(flags, parts, strict=True)}  # fmt: skip


def _chosen(every: dict[str, Cell], names: Sequence[str] | None) -> list[Cell]:
    if names is None:
        return list(every.values())
    for name in names:
        if name not in every:
            raise GlimpseError(f"There is no cell {name!r}.{nearest(name, list(every))} `--list` names all of them.")
    return [every[name] for name in names]


def _check_plotted(names: Sequence[str], every: dict[str, Cell]) -> None:
    known = list(dict.fromkeys(str(cell.labels["methods"]) for cell in every.values() if "methods" in cell.labels))
    for name in names:
        if name not in known:
            near = f"{nearest(name, known)} Methods: {', '.join(known) or 'none'}."
            raise GlimpseError(f"`--plot {name}`: the ablation has no such method.{near}")


def _print_slurm(settings: Settings, planned: list[tuple[str, ...]]) -> None:
    if settings.devices_per_cell > 1:
        raise GlimpseError(
            "Expected `devices_per_cell` = 1 with `--launcher slurm`, whose tasks are single processes; start cells on "
            f"several GPUs yourself: `test --config {settings.root}/cells/NAME.yaml` under `srun`."
        )
    if not planned:
        raise GlimpseError("Every cell is finished; run the command without `--launcher slurm` for the tables.")
    print(launch.slurm_script(planned, settings.name, settings.root / SETTINGS, settings.root), end="")


def _report(settings: Settings, left_out: str, rows: list[Row], comment: str, plotted: Sequence[str]) -> int:
    report.write_csv(rows, settings.root / "results.csv")
    table = report.markdown(rows, settings.name, left_out)
    write_text(settings.root / "results.md", table)
    write_text(settings.root / "results.tex", report.latex(rows, comment))
    report.write_hparams(rows, settings.root / "hparams")
    print(table)
    try:
        write_plots(rows, settings.root, plotted)
    except GlimpseError as error:
        print(f"note: {error}", file=sys.stderr)
    failed = [row for row in rows if row.run is None]
    print(f"Everything is in {settings.root}.")
    if failed:
        names = ", ".join(row.cell.name for row in failed)
        print(
            f"error: {len(failed)} of {len(rows)} cells failed: {names}. The same command tries them again.",
            file=sys.stderr,
        )
    return int(bool(failed))
