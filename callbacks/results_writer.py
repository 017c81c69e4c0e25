"""results.json, predictions.jsonl and the table on the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.data.digest import digest
from glimpse_lightning.evaluation.module import EvaluationModule
from glimpse_lightning.evaluation.records import Summary, summarise
from glimpse_lightning.evaluation.remarks import (
    foreign,
    no_better_than_random,
    off_budget,
    partly_seen,
    uneven,
    why_nothing_is_right,
)
from glimpse_lightning.evaluation.timing import COSTS
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.metrics import ExactMatch
from glimpse_lightning.runtime.machine import describe, device_name
from glimpse_lightning.runtime.run_folder import ANSWERS, RESULTS
from glimpse_lightning.runtime.seeds import global_seed
from glimpse_lightning.runtime.terminal import UNKNOWN, counted, figures_table, plain, show
from glimpse_lightning.runtime.whole_files import write_text

PACKAGES = ("glimpse-lightning", "torch", "transformers", "lightning")
SHOWN = {
    "retention": "retention",
    "accuracy": "accuracy",
    "relative_accuracy": "relative",
    "agreement": "agreement",
    "evidence_recall": "evidence",
}
COMPARED = (
    "accuracy", "retention", "relative_accuracy", "full_accuracy", "agreement", "kl", "evidence_recall", "flops_ratio",
    "kv_retention",
)  # fmt: skip
"""Figures of TensorBoard's HParams page, in the order of its columns."""
COLUMNS = (
    "recipe", "dataset", "pruner", "after_layer", "scorer", "policy", "reducer", "objective", "budget", "early_kv",
    "positions", "lr", "backbone", "seed",
)  # fmt: skip
"""Settings of the HParams page. TensorBoard shows the columns of the first run that it finds, so that all runs have to
have the same."""
SETTINGS = {
    "pruner": "pruner", "lr": "optimizer.lr", "backbone": "backbone",
    "early_kv": "early_kv", "positions": "positions",
}  # fmt: skip
"""Columns of the HParams page next to those of the swappable parts, and where the configuration has them."""
BUDGETS = ("ratio", "count", "flops", "threshold", "retention")
"""Arguments of policies and objectives that differ between runs of one method."""
FAMILY_SHOWN = {
    "accuracy": "accuracy",
    "full_accuracy": "full",
    "agreement": "agreement",
    "retention": "retention",
    "oracle_retention": "oracle",
}


class ResultsWriter(Callback):
    """Writes an evaluation's results when it ends, ``results.json`` last of all, so that this file marks a finished
    run.

    Args:
        recipe: name of the recipe.
        command: subcommand of the run; default: the trainer's own function.
        command_line: the command as it was typed.
    """

    def __init__(self, recipe: str = "", command: str | None = None, command_line: str | None = None) -> None:
        self.recipe = recipe
        self.command = command
        self.command_line = command_line
        self._elapsed = 0.0
        self._started = time.monotonic()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Time spent so far, so that a resumed run reports all of it."""
        return {"elapsed": self.elapsed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._elapsed:
            self._elapsed = float(state_dict["elapsed"])

    @property
    def elapsed(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return self._elapsed + time.monotonic() - self._started

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.write(trainer, pl_module, "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "test")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / f"{ANSWERS}.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        rows = [json.loads(line) for line in lines if line]
        shares = [row["kept"] / row["total"] for row in rows if row["total"]]
        retention = sum(shares) / len(shares) if shares else None
        self.write(trainer, pl_module, "predict", {"n": len(rows), "metrics": {"retention": retention}})

    def write(
        self, trainer: Trainer, module: LightningModule, split: str | None, found: Mapping[str, Any] | None = None
    ) -> None:
        """Write everything about the evaluation of ``split`` (``None``: no evaluation took place).

        Args:
            found: entries of ``results.json`` in place of the evaluation's summary; by default the summary is written.
        """
        if not trainer.is_global_zero or (split and _in_brief(trainer)):  # figures of few batches
            return
        folder = Path(trainer.default_root_dir)
        summary = module.summary if isinstance(module, EvaluationModule) and split and found is None else None
        if summary is not None:
            write_jsonl(folder / "predictions.jsonl", [dataclasses.asdict(record) for record in summary.records])
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    data = _dataset(trainer, split)
                    row = {"recipe": self.recipe, "dataset": str(getattr(data, "path", type(data).__name__))}
                    _add_to_hparams(logger, row | settings_of(module.hparams), summary.metrics)
        remarks = self._remarks(trainer, module, split, summary)
        results = self._results(trainer, module, split, summary) | dict(found or {})
        results["remarks"] += remarks
        write_text(folder / RESULTS, json.dumps(_plain(results), indent=2, ensure_ascii=False) + "\n")
        if summary is not None:
            backbone = _backbone(module)
            print_summary(summary, remark="\n".join(filter(None, [backbone.asked() if backbone else "", *remarks])))
            if isinstance(module, EvaluationModule) and module.costs:
                print_costs(module.costs)
        elif remarks:
            show(*map(plain, remarks))

    def _remarks(
        self, trainer: Trainer, module: LightningModule, split: str | None, summary: Summary | None
    ) -> list[str]:
        """What to know about the figures before they are read."""
        found = [foreign(_backbone_name(module), _dataset(trainer, split))]
        if summary is not None:
            metric = module.metric if isinstance(module, EvaluationModule) else None
            found += [
                why_nothing_is_right(summary, type(metric or ExactMatch()).__name__),
                off_budget(summary, None if _reads_pruner(module) else getattr(module, "objective", None)),
                uneven(summary),
                partly_seen(module.seen) if isinstance(module, EvaluationModule) else "",
                no_better_than_random(summary),
            ]
        return list(filter(None, found))

    def _results(
        self, trainer: Trainer, module: LightningModule, split: str | None, summary: Summary | None
    ) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = _dataset(trainer, split)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {
            "recipe": self.recipe,
            "command": self.command or str(trainer.state.fn),
            "backbone": _backbone_name(module),
            **(backbone.described() if (backbone := _backbone(module)) else {}),
            "pruner": module.pruner_folder if isinstance(module, VLMModule) else None,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "after_layers": _after_layers(module),
            "seed": global_seed(),
            "command_line": self.command_line,
            "dataset": type(dataset).__name__ if dataset is not None else None,
            "data_file": str(dataset.path) if hasattr(dataset, "path") else None,
            "data": _digests(data, self.command or str(trainer.state.fn), split),
            "split": split,
            "n": len(summary.records) if summary else None,
            "scored": summarise(summary.records)["scored"] if summary else None,
            "metrics": summary.metrics if summary else logged,
            "families": summary.families if summary else {},
            "costs": module.costs if isinstance(module, EvaluationModule) and summary else None,
            "steps": trainer.global_step,
            "skipped": skipped_samples(trainer, module, split),
            "remarks": list(getattr(module, "remarks", [])),
            "wall_time_s": round(self.elapsed, 1),
            "peak_memory_mb": peak_memory_mb(),
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "dtype": _dtype(module),
            "processor": device_name(trainer.strategy.root_device),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            **_circumstances(trainer.strategy.root_device),
        }


def _dataset(trainer: Trainer, split: str | None) -> Any:
    """The dataset that a command reads; `predict` reads that of the test where it has none of its own."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    found = getattr(data, split or "train", None)
    return getattr(data, "test", None) if found is None and split == "predict" else found


def skipped_samples(trainer: Trainer, module: LightningModule, split: str | None) -> list[str]:
    """Messages about the lines and samples that were left out, in the order of their numbers."""
    holders = (module, trainer.datamodule, _dataset(trainer, split))  # type: ignore[attr-defined]
    found = {message for holder in holders for message in getattr(holder, "skipped", [])}
    return sorted(found, key=numbers_as_such)


def settings_of(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that differ between runs, for a table: the parts by their class, and plain values that were given."""
    model: Mapping[str, Any] = hparams.get("model") or {}
    by_stage = [_parts(stage) for stage in model.get("stages") or ()]
    names = dict.fromkeys(name for parts in by_stage for name in parts)
    found = {name: ", ".join(str(parts.get(name, "-")) for parts in by_stage) for name in names} | _parts(model)
    for name, path in SETTINGS.items():
        value: Any = model
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = value
    return {**found, "seed": hparams.get("seed")}


def _add_to_hparams(logger: TensorBoardLogger, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Add a run to the HParams page: a row with all columns, of which those that the run lacks stay empty."""
    budget = "; ".join(f"{name} {value}" for name, value in settings.items() if "." in name)
    row = {name: str(settings.get(name, "-")) for name in COLUMNS} | {"budget": budget or "-"}
    if "objective" not in settings:
        row["lr"] = "-"  # nothing is trained
    figures = {f"hp/{name}": metrics[name] for name in COMPARED}
    logger.log_metrics({name: value for name, value in figures.items() if _is_number(value)}, 0)
    for part in hparams(row, dict.fromkeys(figures, 0.0)):  # names and settings; the values are the scalars above
        logger.experiment.file_writer.add_summary(part)


def _parts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and budgets of the swappable parts of one stage, or of a module with a single one."""
    found: dict[str, Any] = {}
    for part in ("after_layer", "scorer", "policy", "reducer", "objective"):
        value = given.get(part)
        if not isinstance(value, Mapping):
            found |= {} if value is None else {part: value}
        elif "class_path" in value:
            found[part] = value["class_path"].rpartition(".")[2]
            options = dict(value.get("init_args") or {})
            budget = options.pop("budget", None) or {}
            options |= budget if isinstance(budget, Mapping) else {"ratio": budget}
            kept = {name: options[name] for name in BUDGETS if options.get(name) is not None and part != "scorer"}
            found |= {f"{part}.{name}": option for name, option in kept.items()}
    return found


def _in_brief(trainer: Trainer) -> bool:
    """Whether the trainer runs a few batches only, as a test that nothing fails."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _reads_pruner(module: LightningModule) -> bool:
    """Whether the module's pruner is a saved one, of which its recipe's objective says nothing."""
    return isinstance(module, VLMModule) and module.reads_pruner


def print_summary(summary: Summary, console: Console | None = None, remark: str = "") -> None:
    """The table of methods, with a ``remark`` below it, and the one of question families."""
    rows: dict[str, dict[str, Any]] = {"pruned": summarise(summary.records)}
    rows |= {name: summarise(records) for name, records in summary.baselines.items()}
    accuracy = rows["pruned"]["full_accuracy"]
    full = {"retention": 1.0, "accuracy": accuracy, "relative_accuracy": 1.0 if accuracy else None, "agreement": 1.0}
    scored = rows["pruned"]["scored"]
    some = "" if scored in (0, len(summary.records)) else f", {scored} with references"
    title = f"{counted(len(summary.records), 'question')}{some}"
    lines = [
        [name, *(_percent(figures.get(column)) for column in SHOWN)] for name, figures in {"full": full, **rows}.items()
    ]
    table = figures_table(title, ["model", *SHOWN.values()], lines)
    oracle = rows["pruned"]["oracle_retention"]
    of_oracle = "" if oracle is None else f" Oracle retention: {_percent(oracle)}."
    note = f"KL(full || pruned): {_number(rows['pruned']['kl'])} nats.{of_oracle}"
    show(table, note, *([plain(remark)] if remark else []), console=console)
    if not summary.families:
        return
    lines = [
        [name, str(figures["n"]), *(_percent(figures[column]) for column in FAMILY_SHOWN)]
        for name, figures in summary.families.items()
    ]
    show(figures_table("question families", ["family", "n", *FAMILY_SHOWN.values()], lines), console=console)


def print_costs(costs: Mapping[str, Any]) -> None:
    """The table of what a question costs."""
    lines = []
    for name, (label, factor, unit) in COSTS.items():
        one = costs[name]
        values = [f"{factor * one[which]:.3g} {unit}" for which in ("full", "pruned")]
        lines.append([label, *values, f"{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"])
    title = f"{counted(costs['questions'], 'question')}, one at a time, {costs['new_tokens']} tokens each"
    show(figures_table(title, ["cost", "full", "pruned", "pruned / full"], lines))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows))


def _digests(data: Any, command: str, split: str | None) -> dict[str, Any]:
    """Digests of the datasets that a command reads, by their names in the data module; a suite's by task.

    Args:
        split: the split that the figures are about; ``None`` where the command ends without figures.
    """
    if tasks := getattr(data, "tasks", None):
        return {task.name: digest(task.dataset) for task in tasks}
    ends = ("test",) if split == "test" else ()  # a fit's, unless `test_after_fit` is false
    names = {"fit": ("train", "val", *ends), "validate": ("val",)}.get(command, (command,))
    if command == "predict" and getattr(data, "predict", None) is None:
        names = ("test",)
    sizes = {} if command == "predict" else {"test": getattr(data, "test_size", None)}
    found = {name: getattr(data, name, None) for name in names}
    return {name: digest(dataset, sizes.get(name)) for name, dataset in found.items() if dataset is not None}


def _circumstances(device: torch.device) -> dict[str, Any]:
    """Time, machine and code of a run's end; ``dirty``: files of the checkout differ from its commit."""
    about = describe(device)
    state = about["commit"]
    return {
        "date": about["date"],
        "commit": state and state.removesuffix("+"),
        "dirty": state and state.endswith("+"),
        "machine": {
            "host": platform.node(), **{name: about[name] for name in ("system", "cores", "threads", "memory_gib")}
        },
    }  # fmt: skip


def _backbone_name(module: LightningModule) -> str | None:
    if not isinstance(module, VLMModule):
        return None
    return module.backbone if isinstance(module.backbone, str) else module.backbone.name


def _after_layers(module: LightningModule) -> list[int] | None:
    """The layers after which the model under test prunes, as numbers, also where the recipe gives shares."""
    pruner = module.vlm.pruner if isinstance(module, VLMModule) and module.vlm else None
    return None if pruner is None else [stage.after_layer for stage in pruner.stages]


def _backbone(module: LightningModule) -> Backbone | None:
    """The backbone that was loaded."""
    return module.vlm.backbone if isinstance(module, VLMModule) and module.vlm else None


def _dtype(module: LightningModule) -> str | None:
    """Data type of the backbone's weights."""
    vlm = module.vlm if isinstance(module, VLMModule) else None
    return None if vlm is None else str(vlm.dtype).removeprefix("torch.")


def peak_memory_mb() -> float | None:
    """Peak memory of this process; the system counts kilobytes on Linux, bytes on macOS."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def numbers_as_such(text: str) -> list[tuple[int, str]]:
    """A key that sorts texts with numbers in them as people do: line 2 comes before line 10."""
    parts = re.split(r"(\d+)", text)  # every other one is a number
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """``value`` with numbers that JSON cannot hold (NaN, infinities) as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"
