"""The command line of ``reproduce``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import model_info

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.cli.trainer_runs import run as run_trainer
from glimpse_lightning.evaluation.tasks import Places, make_task
from glimpse_lightning.evaluation.timing import costs
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.reproduction import measured
from glimpse_lightning.reproduction.report import print_report, write_report
from glimpse_lightning.reproduction.tables import BACKBONE, PRUNER, TABLES, Model, Run, Table
from glimpse_lightning.rewards.judge import Judge
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_json, read_text
from glimpse_lightning.runtime.run_folder import CONFIG, RESULTS
from glimpse_lightning.runtime.terminal import counted, show
from glimpse_lightning.runtime.whole_files import write_text

PASSED = ("--data.", "--trainer.", "--limit")
"""Beginnings of further options, which go to the runs."""
PLAN = "plan.json"
EXTRA = "measured.json"
GIB = 2**30


def run(args: Sequence[str]) -> int:
    """Run a table of the paper, and compare; returns 0 where every figure that could be compared passes.

    Raises:
        GlimpseError: for a table or an option that is not known, and where another plan was begun in the folder.
    """
    options, rest = _options(args)
    table = TABLES[options.table]
    root = options.output or Path("runs/reproduce") / options.table
    begun = read_json(root / PLAN) if (root / PLAN).is_file() else {}
    models = tuple(_model(getattr(options, part), begun.get(part)) for part in ("backbone", "pruner"))
    plan = {"table": options.table, "backbone": asdict(models[0]), "pruner": asdict(models[1]), "dtype": options.dtype}
    plan |= {"options": rest}
    _begin(root, plan, begun, table, options.yes)
    for each in table.runs:
        _run_once(root, each, table, models, options.dtype, rest)
    found = {each.name: _figures(root, each, table, models, options) for each in table.runs}
    rows = print_report(table, found, rest)
    write_report(root, table, rows, plan, [_folder(root, each, table) for each in table.runs])
    return 0 if all(row.verdict != "fail" for row in rows) else 1


def _options(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser("reproduce", "Run a table of the paper (docs/reproduction) again, and compare.")
    parser.add_argument("table", choices=[*TABLES], metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--backbone", default=BACKBONE.name, help="default: %(default)s, at a pinned version")
    parser.add_argument("--pruner", default=PRUNER.name, help="default: %(default)s")
    parser.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint, for tables that a judge reads")
    parser.add_argument("--judge_model", default="Qwen/Qwen2.5-32B-Instruct-GPTQ-Int8", help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="data type of the backbone; default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: runs/reproduce/TABLE")
    parser.add_argument("--yes", action="store_true", help="begin without asking")
    options, rest = parser.parse_known_args(list(args))
    unknown = [flag for flag in rest if flag.startswith("--") and not flag.startswith(PASSED)]
    if unknown:
        parser.error(f"unrecognized arguments: {unknown[0]}")
    return options, rest


def _model(name: str, begun: dict[str, Any] | None) -> Model:
    """A model at the version that a plan has begun with, or at the one to begin with."""
    return Model(**begun) if begun and begun["name"] == name else Model(name, _revision(name))


def _revision(name: str) -> str | None:
    """The version of a repository to take: the pinned one, or the newest; ``None`` of a folder."""
    if Path(name).is_dir():
        return None
    pinned = {each.name: each.revision for each in (BACKBONE, PRUNER)}.get(name)
    if pinned is not None:
        return pinned
    try:
        return model_info(name).sha
    except Exception as error:  # hub clients raise a dozen unrelated types
        raise GlimpseError(
            f"{name} is no folder here, and its version on the Hub could not be read ({type(error).__name__}: "
            f"{error}). Check the name and the network, or name a folder."
        ) from error


# -- before the runs --------------------------------------------------------------------------------------------------


def _begin(root: Path, plan: dict[str, Any], begun: dict[str, Any], table: Table, yes: bool) -> None:
    """Say what is needed and ask, unless the same plan was ``begun`` before."""
    if begun:
        if begun != plan:
            other = next(key for key in plan if begun.get(key) != plan[key])
            raise GlimpseError(
                f"{root} holds runs of another plan (`{other}` is {begun.get(other)} there, and {plan[other]} here). "
                "Name another --output, or repeat the command of before."
            )
        show(f"Going on with the runs in {root}.")
        return
    root.mkdir(parents=True, exist_ok=True)
    show(*_needed(root, plan, table))
    if not yes and not _agreed():
        raise GlimpseError("Nothing was begun. Repeat the command with --yes, or answer y.")
    write_text(root / PLAN, json.dumps(plan, indent=2) + "\n")


def _needed(root: Path, plan: dict[str, Any], table: Table) -> list[str]:
    needs = table.needs
    free = shutil.disk_usage(root).free / GIB
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    here = ", ".join(f"{gpu.name} with {gpu.total_memory / GIB:.0f} GiB" for gpu in gpus) or "none"
    judge = ["A judge: --judge URL, now or later with the same command; another GPU of 40 GiB and an hour."]
    return [
        f"{table.title}.",
        f"Time: {needs.hours[0]:g} to {needs.hours[1]:g} hours on one GPU, an estimate.",
        f"GPU memory: {needs.gpu} GiB; here: {here}.",
        f"Disk: {needs.disk} GiB with weights and data; free at {root}: {free:.0f} GiB.",
        f"Data: {needs.data}.",
        *(judge if table.judged else []),
        f"Backbone {_said(plan['backbone'])}; pruner {_said(plan['pruner'])}.",
        f"Runs: {', '.join(each.name for each in table.runs)}, in {root}.",
    ]


def _said(model: dict[str, Any]) -> str:
    return f"{model['name']} at {model['revision']}" if model["revision"] else f"{model['name']}, a folder"


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("Begin? [y/N] ").strip().lower() in ("y", "yes")


# -- the runs ---------------------------------------------------------------------------------------------------------


def _folder(root: Path, each: Run, table: Table) -> Path:
    return root / each.name / table.config.rpartition("/")[2] / "test_0"


def _run_once(root: Path, each: Run, table: Table, models: Sequence[Model], dtype: str, rest: list[str]) -> None:
    """One run, unless it has ended; one that was interrupted goes on."""
    if (_folder(root, each, table) / RESULTS).is_file():
        return
    backbone, pruner = models
    source = str(_capped(root, each, pruner)) if each.cap is not None else pruner.name
    flags = ["--config", table.config, "--backbone", backbone.name, "--model.dtype", dtype, "--pruner", source]
    flags += ["--model.source.revision", backbone.revision] if backbone.revision else []
    flags += ["--model.pruner_source.revision", pruner.revision] if pruner.revision and each.cap is None else []
    flags += [*table.common, *each.flags, *rest, "--trainer.default_root_dir", str(root / each.name)]
    run_trainer(["test", *flags])


def _capped(root: Path, each: Run, pruner: Model) -> Path:
    """A copy of the pruner whose policy keeps at most ``each.cap`` of the tokens."""
    folder = root / "pruners" / each.name
    if not folder.is_dir():
        loaded = load_pruner(pruner.name, revision=pruner.revision)
        policy = loaded.stages[0].policy
        if not isinstance(policy, Threshold):
            raise GlimpseError(
                f"Expected a pruner with a Threshold, whose share can be capped, but got {type(policy).__name__}."
            )
        policy.max_ratio = each.cap
        save_pruner(loaded, folder)
    return folder


def _figures(
    root: Path, each: Run, table: Table, models: Sequence[Model], options: argparse.Namespace
) -> dict[str, float]:
    """Figures of a run; what is computed after it is kept in a file next to its results."""
    folder = _folder(root, each, table)
    file = folder / EXTRA
    more = read_json(file) if file.is_file() else {}
    if table.judged and options.judge is not None and "judge" not in more:
        judge = Judge(options.judge, options.judge_model, cache=str(root / "judge"))
        more |= measured.judged(measured.predictions(folder), judge)
        if failed := judge.counts["failed"]:
            show(f"The judge failed on {counted(failed, 'answer')} of {each.name}: the same command asks again.")
    if table.costs and "ttft" not in more:
        more |= measured.shares(_costs(folder, table, models, options.dtype))
    if more:
        write_text(file, json.dumps(more, indent=2) + "\n")
    return measured.figures(folder) | more


def _questions(folder: Path) -> Any:
    """The dataset of a run's first task."""
    options = yaml.safe_load(read_text(folder / CONFIG))["data"]["init_args"]
    return make_task(options["tasks"][0], Places(**options["places"]), options["limit"]).dataset


def _costs(folder: Path, table: Table, models: Sequence[Model], dtype: str) -> dict[str, Any]:
    """Time and memory of the run's first questions."""
    backbone, pruner = models
    questions = _questions(folder)
    samples = [questions[i] for i in range(min(table.costs, len(questions)))]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_backbone(backbone.name, revision=backbone.revision, dtype=dtype)
    model = PrunedVLM(loaded, load_pruner(pruner.name, revision=pruner.revision)).to(device)
    return costs(model, [replace(sample, answers=sample.answers[:1]) for sample in samples])
