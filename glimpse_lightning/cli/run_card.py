"""What a model card says about a run: its figures and where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from glimpse_lightning.evaluation.intervals import Estimate, mean_estimate
from glimpse_lightning.evaluation.predictions import read_predictions
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_json, read_text
from glimpse_lightning.runtime.run_folder import CONFIG, RESULTS
from glimpse_lightning.runtime.terminal import counted

PREDICTIONS = "predictions.jsonl"
RANDOM = "random"


@dataclass(frozen=True)
class MeasuredRun:
    """A run with figures.

    Args:
        folder: its folder.
        results: its ``results.json``.
        pruner: folder of the pruner that the figures are of.
        fit: ``results.json`` of the fit that left the pruner; empty: not known.
        accuracy: accuracy of the pruned model with its interval, where the run has kept its predictions.
        full: that of the full model.
    """

    folder: Path
    results: Mapping[str, Any]
    pruner: Path
    fit: Mapping[str, Any]
    accuracy: Estimate | None
    full: Estimate | None

    @classmethod
    def read(cls, folder: Path, pruner: Path | None = None) -> MeasuredRun:
        """The run in a folder.

        Args:
            pruner: folder of its pruner; by default the one that it has trained or read.

        Raises:
            GlimpseError: where it has not ended, has no accuracy, or its pruner is not found.
        """
        if not (folder / RESULTS).is_file():
            raise GlimpseError(
                f"Expected the folder of a finished run, but {folder} has no {RESULTS}. Name one like "
                "`runs/vip_kl/fit_0`; a run that was interrupted goes on with the same command."
            )
        results = read_json(folder / RESULTS)
        metrics = results.get("metrics") or {}
        if metrics.get("accuracy") is None or metrics.get("full_accuracy") is None:
            raise GlimpseError(
                f"Expected {folder} to compare the pruned model with the full one, but its {RESULTS} has no accuracy "
                "of both. Run `test` on questions with answers, and name its folder."
            )
        file = folder / PREDICTIONS
        rows = read_predictions(file) if file.is_file() else []
        images = [row.image for row in rows]
        pruned, full = [row.score for row in rows], [row.full_score for row in rows]
        pruner = pruner or _pruner_of(folder, results)
        trained = pruner.parent / RESULTS
        fit = read_json(trained) if trained.is_file() else {}
        return cls(folder, results, pruner, fit, _estimate(pruned, images), _estimate(full, images))

    @property
    def seed(self) -> str:
        """Seed of the training, for the table."""
        config = self.pruner.parent / CONFIG
        asked = yaml.safe_load(read_text(config)) if config.is_file() else {}
        seed = self.fit.get("seed", asked.get("seed_everything"))
        return "training seed not known" if seed is None else f"seed {seed}"


def _pruner_of(folder: Path, results: Mapping[str, Any]) -> Path:
    """Folder of the pruner that a run has trained or read; raises where there is none."""
    checkpoint, named = results.get("checkpoint"), results.get("pruner")
    found = [folder / "pruner", *([Path(named)] if named else [])]
    found += [Path(checkpoint).parent.parent / "pruner"] if checkpoint else []
    for each in found:
        if each.is_dir():
            return each
    raise GlimpseError(
        f"Expected {folder} to have trained or read a pruner, but found none ({', '.join(map(str, found))}). Name "
        "its folder with --pruner; a method without training is uploaded by `gl.PrunedVLM(...).push_to_hub`."
    )


def _estimate(scores: Sequence[float | None], images: Sequence[str]) -> Estimate | None:
    """Mean and interval; ``None`` where a question has no score, or there are none."""
    known = [score for score in scores if score is not None]
    return mean_estimate(known, images) if known and len(known) == len(scores) else None


def check_alike(runs: Sequence[MeasuredRun]) -> None:
    """Raise unless all runs are of one recipe, backbone and test."""
    first = runs[0]
    for run in runs[1:]:
        for name, value in _test(first).items():
            if (other := _test(run)[name]) != value:
                raise GlimpseError(
                    f"Expected runs that differ by their seeds alone, but `{name}` is {value} in {first.folder} and "
                    f"{other} in {run.folder}. Publish them one by one, or test them on the same questions."
                )


def _test(run: MeasuredRun) -> dict[str, Any]:
    """What runs have to share so that their figures can stand in one table."""
    results = run.results
    shared = {name: results.get(name) for name in ("recipe", "backbone", "split", "n")}
    return shared | {"data": (results.get("data") or {}).get(results.get("split"))}


def sections(runs: Sequence[MeasuredRun]) -> str:
    """Results and their origin, in Markdown."""
    return "\n\n".join(["## Results", _about(runs[0]), _table(runs), *_notes(runs), "## Origin", _origin(runs)])


def _about(run: MeasuredRun) -> str:
    where = f"{run.results.get('dataset')} ({run.results.get('split')})"
    return (
        f"{counted(run.results['n'], 'question')} of {where}. In brackets: 95 % intervals over images. Kept: share of "
        "the visual tokens that stay after the last stage, mean over questions."
    )


def _table(runs: Sequence[MeasuredRun]) -> str:
    first = runs[0].results["metrics"]
    rows = [["model", "kept", "accuracy", "relative to the full model"], ["---"] * 4]
    rows.append(["full model", "100 %", _accuracy(first["full_accuracy"], runs[0].full), ""])
    rows += [_row("**this pruner**, " * (run is runs[0]), run) for run in runs]
    if len(runs) > 1:
        columns = ("retention", "accuracy", "relative_accuracy")
        rows.append(["mean and standard deviation", *(_spread(runs, name) for name in columns)])
    for name in _baselines(first):
        cells = (_percent(first[f"{name}_{key}"]) for key in ("retention", "accuracy", "relative_accuracy"))
        rows.append([f"{name.replace('_', ' ')}, as many tokens of each question", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, run: MeasuredRun) -> list[str]:
    metrics = run.results["metrics"]
    accuracy, relative = _accuracy(metrics["accuracy"], run.accuracy), _percent(metrics.get("relative_accuracy"))
    return [name + run.seed, _percent(metrics["retention"]), accuracy, relative]


def _notes(runs: Sequence[MeasuredRun]) -> list[str]:
    """What to know about the figures: no comparison with Random, and the run's own remarks."""
    results = runs[0].results
    missing = [] if RANDOM in _baselines(results["metrics"]) else ["No comparison with random tokens was run."]
    return [*missing, *map(str, results.get("remarks") or [])]


def _origin(runs: Sequence[MeasuredRun]) -> str:
    results = runs[0].results
    versions = [f"{name} {version}" for name, version in (results.get("versions") or {}).items() if version]
    kinds = f"weights in {results.get('dtype')}, precision {results.get('precision')}"
    commands = [_command(each) for run in runs for each in ([run.fit] if run.fit else []) + [run.results]]
    data = [f"* data of {name}: {rows} rows, digest {digest}" for name, rows, digest in _digests(results)]
    return "\n".join([*dict.fromkeys(commands), f"* {results.get('processor')}, {kinds}; {', '.join(versions)}", *data])


def _command(results: Mapping[str, Any]) -> str:
    """A line with recipe, seed, date, code and command of a run."""
    changed = " with changes of its own" if results.get("dirty") else ""
    code = f", code at {results['commit']}{changed}" if results.get("commit") else ""
    command = " ".join(map(without_folders, str(results.get("command_line") or "").split()))
    what = f"{results.get('command')} of recipe `{results.get('recipe')}`"
    return f"* {what}, seed {results.get('seed')}, {results.get('date')}{code}: `{command}`"


def _digests(results: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, rows and digest of each dataset."""
    found = results.get("data") or {}
    return [(name, about.get("rows"), about["digest"]) for name, about in found.items() if "digest" in (about or {})]


def _baselines(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the baselines that a run compares with."""
    ending = "_relative_accuracy"
    return [name.removesuffix(ending) for name in metrics if name.endswith(ending)]


def without_folders(word: str) -> str:
    """A word of a command line without the folders of the machine that it was typed on."""
    return re.sub(r"(?:~|\.{0,2})/[^\s=]*/(?=[^/\s]+)", "", word)


def _spread(runs: Sequence[MeasuredRun], name: str) -> str:
    values = [100 * run.results["metrics"][name] for run in runs]
    return f"{mean(values):.1f} ± {stdev(values):.1f} %"


def _accuracy(value: float, estimate: Estimate | None) -> str:
    return _percent(value) + (f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" if estimate else "")


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.1f} %"
