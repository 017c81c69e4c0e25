"""An ablation's tables: tidy CSV, Markdown, LaTeX, TensorBoard's HParams."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from glimpse_lightning.ablation.glance import Glance, axes, best_rows
from glimpse_lightning.ablation.latex import tabular
from glimpse_lightning.ablation.overrides import get
from glimpse_lightning.ablation.rows import ALL, Row, above_floor
from glimpse_lightning.ablation.settings import UNNAMED
from glimpse_lightning.ablation.tables import interval, markdown_table, percent
from glimpse_lightning.evaluation.timing import COSTS as MEASURED
from glimpse_lightning.runtime.terminal import UNKNOWN, counted
from glimpse_lightning.runtime.whole_files import remove, write_text

COUNTS = {
    "entering_retention": "tokens entering",
    "layer_retention": "tokens per layer",
    "kv_retention": "KV at decode",
    "flops_ratio": "FLOPs",
}
"""The four ways of counting, as ``token_counts`` explains them, and their columns."""

COSTS = {"ttft": "first token", "tpot": "next tokens", "kv_bytes": "KV bytes", "peak_bytes": "peak memory"}
"""Costs of a question, as ``evaluation/timing.py`` measures them, and their columns."""

SKIPPED_SHOWN = 5
"""Messages about rows left out that the tables show."""

NOTE = """\
{cells}; {questions} each.{scored} Tokens, all as shares of the full model's: entering the language model; averaged over
its layers; in the KV cache while decoding; FLOPs of its prefill (the pruner's own cost is not counted).
"""
SCORED = """\
 Brackets: 95 % intervals in which questions about one image count together ({images}). Difference: to the first row,
paired by question.\
"""
COST_NOTE = """\
First token, next tokens: time to the first token and per further one; KV bytes after the prefill and peak memory above
the weights. All as ratios to Hugging Face's own model, over {questions}, one at a time, in turns; median with its 95 %
interval. That model: {full} (medians of the first such row).\
"""
UNSCORED = """\
No answer has references. Agreement: share of answers equal to the full model's. KL: KL(full || pruned) in nats, mean
over the tokens of the full model's answers; it ranks methods where hardly any answer is equal.\
"""
ABOVE_FLOOR = """\
Above floor: (accuracy - floor) / (first row's accuracy - floor), where the floor is the accuracy of {floors}.\
"""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line for each cell, family of questions and figure; intervals where there are any."""
    names = axes(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["cell", "mode", "status", *names, "family", "metric", "value", "ci_low", "ci_high", "n", "run", "error"]
    )
    for row in rows:
        labels = [row.cell.labels.get(axis, "") for axis in names]
        start, end = [row.cell.name, row.cell.mode, row.status, *labels], [row.run or "", row.error or ""]
        if row.run is None:
            writer.writerow([*start, "", "", "", "", "", "", *end])
        for family, figures in row.figures.items():
            estimates = {"accuracy": row.accuracy(family), "accuracy_difference": row.gain(rows[0], family)}
            if (share := above_floor(rows, row, family)) is not None:
                figures = {**figures, "above_floor": share}
            known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
            for name, estimate in known.items():
                values = [estimate.value, estimate.low, estimate.high, estimate.n]
                writer.writerow([*start, family, name, *values, *end])
            for name, cost in row.costs.items() if family == ALL else ():
                ratio = [cost["ratio"], cost["low"], cost["high"]]
                writer.writerow([*start, family, f"{name}_ratio", *ratio, row.timed, *end])
            for name, value in figures.items():
                if name not in known and name != "n":
                    writer.writerow([*start, family, name, value, "", "", int(figures["n"]), *end])
    write_text(path, out.getvalue())


def without_pruner(methods: Mapping[str, Sequence[str]]) -> str:
    """A sentence about methods that are left out, by the name of the saved pruner that they ask for; or empty."""
    parts = [f"{', '.join(found)} (`--pruner {'' if name == UNNAMED else f'{name}='}FOLDER`)"
             for name, found in methods.items()]  # fmt: skip
    return f"Left out, for want of a saved pruner: {'; '.join(parts)}." if parts else ""


def markdown(rows: Sequence[Row], name: str, left_out: str = "") -> str:
    """The Markdown tables; failed cells stand below them with their errors, and methods that are ``left_out``."""
    names = axes(rows)
    lines = [f"# Ablation `{name}`", "", *glance(rows)]
    header = [*names, *COUNTS.values(), *COSTS.values(), "accuracy", "difference"]
    header += ["relative", "above floor", "agreement", "KL"]
    scored = any(row.accuracy() is not None for row in rows)
    table = []
    for row in rows:
        counts = [percent(row.figure(key)) for key in COUNTS]
        gain = row.gain(rows[0])
        shares = [row.figure("relative_accuracy"), above_floor(rows, row), row.figure("agreement")]
        labels = [str(row.cell.labels.get(axis, UNKNOWN)) for axis in names]
        costs = [_cost(row.costs.get(key)) for key in COSTS]
        accuracies = [interval(row.accuracy()), interval(gain, "+")]
        kl = None if scored else row.figure("kl")
        shown = UNKNOWN if kl is None else f"{kl:.3g}"
        table.append([*labels, *counts, *costs, *accuracies, *map(percent, shares), shown])
    lines += markdown_table(header, table, len(names))
    questions = sorted({int(row.figures[ALL]["n"]) for row in rows if row.run is not None})
    images = sorted({len({*row.images.values()} - {""}) for row in rows if row.run is not None})
    brackets = SCORED.format(images=_either(images, "image")) if scored else ""
    lines += [
        "",
        NOTE.format(cells=counted(len(rows), "cell"), questions=_either(questions, "question"), scored=brackets),
    ]
    if not scored:
        lines += [UNSCORED, ""]
    if timed := [row for row in rows if row.costs]:
        measured = _either(sorted({row.timed for row in timed}), "question")
        lines += [COST_NOTE.format(questions=measured, full=_absolute(timed[0])), ""]
    if floors := _floors(rows):
        lines += [ABOVE_FLOOR.format(floors=floors), ""]
    if asked := list(dict.fromkeys(map(str, filter(None, map(_processor, rows))))):
        lines += [f"Settings of the image processor: {' or '.join(asked)}.", ""]
    if strayed := [(row, asked, kept) for row in rows for asked, kept in _strayed(row)]:
        found = [f"* `{row.cell.name}`: {kept:.1%} instead of {asked:.1%}" for row, asked, kept in strayed]
        lines += ["Kept another share of the tokens than the axis says:", "", *found, ""]
    if skipped := list(dict.fromkeys(message for row in rows for message in row.skipped)):
        named = [f"* {message}" for message in skipped[:SKIPPED_SHOWN]]
        more = [f"* and {len(skipped) - SKIPPED_SHOWN} more: `skipped` in the cells' results.json"]
        lines += [f"Left out: {counted(len(skipped), 'row')}.", "", *named, *more[: len(skipped) > SKIPPED_SHOWN], ""]
    said: dict[str, list[str]] = {}
    for row in rows:
        for remark in row.remarks:
            said.setdefault(remark, []).append(f"`{row.cell.name}`")
    if said:
        whose = {remark: "all" if len(cells) == len(rows) else ", ".join(cells) for remark, cells in said.items()}
        lines += ["Remarks of the cells:", "", *(f"* {cells}: {remark}" for remark, cells in whose.items()), ""]
    if left_out:
        lines += [left_out, ""]
    if failed := [row for row in rows if row.run is None]:
        lines += ["Not finished:", "", *(f"* `{row.cell.name}`: {row.error or 'has not run'}" for row in failed), ""]
    return "\n".join(lines)


def _floors(rows: Sequence[Row]) -> str:
    """The floors of all methods; of the most frequent one without its methods."""
    methods: dict[str, list[str]] = {}
    for row in rows:
        if row.cell.floor is not None and row.method not in (found := methods.setdefault(row.cell.floor, [])):
            found.append(row.method)
    first, *others = sorted(methods.items(), key=lambda item: -len(item[1])) or [("", [])]
    named = [f"of `{floor}` for {', '.join(found)}" for floor, found in others]
    return ", ".join([f"`{first[0]}`", *named]) if first[0] else ""


def glance(rows: Sequence[Row]) -> list[str]:
    """Accuracy in percent, a line for each method and a column for each value of the other axis, as papers print it;
    agreement with the full model where no question has references.

    For a cell that has no value on that axis, a last column gives its accuracy and the share of tokens it kept. Empty
    unless there are ``methods`` and exactly one other axis.
    """
    found = Glance.of(rows)
    return [] if found is None else [*markdown_table(found.header, found.lines(), 1 + len(found.values)), ""]


def latex(rows: Sequence[Row], comment: str) -> str:
    """The table at a glance for LaTeX; where there is none, the accuracy of each cell."""
    if (found := Glance.of(rows)) is not None:
        return tabular(found.header, found.lines(), found.best(), comment)
    names = axes(rows)
    lines = [
        [*(str(row.cell.labels.get(axis, UNKNOWN)) for axis in names), interval(row.accuracy()),
         percent(row.figure("kv_retention"))]
        for row in rows
    ]  # fmt: skip
    bold = {(line, len(names)) for line in best_rows(rows, "accuracy")}
    return tabular([*names, "accuracy", COUNTS["kv_retention"]], lines, bold, comment, len(names))


def _processor(row: Row) -> Any:
    """Settings of a cell's image processor, where its recipe has any."""
    return get(row.cell.recipe, "model.init_args.processor") or get(row.cell.recipe, "model.processor")


def _strayed(row: Row) -> list[tuple[float, float]]:
    """The requested and the kept share where they differ by more than a point, or a tenth of the requested one."""
    asked, kept = row.cell.labels.get("retention"), row.figure("retention")
    if not isinstance(asked, (int, float)) or kept is None or abs(kept - asked) <= max(0.01, 0.1 * asked):
        return []
    return [(float(asked), kept)]


def write_hparams(rows: Sequence[Row], folder: Path) -> None:
    """TensorBoard's HParams page: a row for each cell, failed ones without figures."""
    remove(folder)
    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            settings = {"mode": row.cell.mode, "status": row.status, **row.cell.labels}
            figures = {f"metric/{name}": value for name, value in row.figures.get(ALL, {}).items()}
            writer.add_hparams(settings, figures, run_name=row.cell.name)


def _either(numbers: Sequence[int], thing: str) -> str:
    said = " or ".join(str(number) if number else "no known" for number in numbers) or "no"
    return f"{said} {thing}" if [*numbers] == [1] else f"{said} {thing}s"


def _absolute(row: Row) -> str:
    """What a question costs Hugging Face's own model."""
    parts = (f"{factor * row.costs[name]['full']:.3g} {unit}" for name, (_, factor, unit) in MEASURED.items())
    return ", ".join(f"{COSTS[name]} {part}" for name, part in zip(MEASURED, parts, strict=True))


def _cost(found: Mapping[str, float] | None) -> str:
    return UNKNOWN if found is None else f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
