"""A comparison of runs as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from glimpse_lightning.ablation.compared_runs import ComparedRun
from glimpse_lightning.ablation.comparison import RIGHT, Comparison, Pair
from glimpse_lightning.ablation.latex import best_and_ties, tabular
from glimpse_lightning.ablation.statistics import FLIPS
from glimpse_lightning.ablation.tables import interval, markdown_table, percent
from glimpse_lightning.evaluation.intervals import Estimate
from glimpse_lightning.runtime.terminal import UNKNOWN, counted, figures_table, show

WIDTH = 40
"""Characters of a setting's value that tables show."""
CONTEXT = 8
"""Characters that are shown of what long values have in common."""
NOTE = (
    "Brackets: 95 % intervals in which questions about one image count together ({images}). "
    "Difference: to {reference}, paired by question. p: share of {flips:,} random flips of the images' signs with a "
    "mean at least as far from 0, two-sided{holm}. "
    "Lost, won: answers that only {reference}, or only the run, has right (a score of {right:g} or more)."
)


@dataclass(frozen=True)
class Section:
    """A table with its title and the paragraphs below it; on the terminal long cells are cut off, or wrapped."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    wraps: bool = False


def sections(comparison: Comparison) -> list[Section]:
    """The tables of a comparison; those without a row are left out."""
    names = comparison.names
    tables = [
        Section("runs", *_runs(comparison), [_note(comparison), *_remarks(comparison)]),
        Section(f"difference to {names[0]} by family", ["family", "n", *names[1:]], _families(comparison), wraps=True),
        Section("settings that differ", ["key", *names], _settings(comparison), wraps=True),
    ]
    return [each for each in tables if each.rows]


def print_comparison(comparison: Comparison, flips: int) -> None:
    """Show the tables on the terminal, and the first ``flips`` changed answers of each run."""
    for each in sections(comparison):
        show(figures_table(each.title, each.header, each.rows, each.wraps), *each.notes)
    show(*changed_answers(comparison, flips))


def markdown(comparison: Comparison, flips: int, comment: str) -> str:
    """The tables as Markdown, the first ``flips`` changed answers of each run, and the ``comment`` at the end."""
    lines = ["# Runs compared", ""]
    for each in sections(comparison):
        lines += [f"## {each.title[0].upper()}{each.title[1:]}", "", *markdown_table(each.header, each.rows), ""]
        lines += [line for note in each.notes for line in (note, "")]
    if changed := changed_answers(comparison, flips):
        lines += ["## Changed answers", "", *changed, ""]
    return "\n".join([*lines, f"`{comment.removeprefix('% ')}`", ""])


def changed_answers(comparison: Comparison, most: int) -> list[str]:
    """Lines about the first ``most`` changed answers of each run, those that were lost first."""
    return [line for pair in comparison.pairs for flip in _flips(pair, most) for line in _told(pair, flip)]


def _told(pair: Pair, flip: Mapping[str, str]) -> list[str]:
    return [
        f"* {flip['change']} by {pair.name}, {_text(flip['id'])}: {_text(flip['question'])}",
        f"    * reference: {_text(flip['references'])}",
        f"    * {pair.reference_name} ({flip['kept_before']} tokens): {_text(flip['before'])}",
        f"    * {pair.name} ({flip['kept']} tokens): {_text(flip['after'])}",
    ]


def latex(comparison: Comparison, comment: str) -> str:
    """The table of runs for LaTeX: the best accuracy in bold, and those that its interval does not tell from it."""
    runs = comparison.runs

    def gain(place: int, other: int) -> Estimate | None:
        names = [name for name in runs[other].scores if name in runs[place].scores]
        return Pair("", runs[place], "", runs[other], names).difference if names else None

    header, rows = _runs(comparison)
    best = best_and_ties([run.accuracy.value for run in runs], gain)
    return tabular(header, rows, {(place, header.index("accuracy")) for place in best}, comment)


def as_json(comparison: Comparison, flips: int, comment: str) -> str:
    """Everything, values of settings unshortened."""
    pairs: list[Pair | None] = [None, *comparison.pairs]
    adjusted = [1.0, *comparison.adjusted]
    found = {
        "command": comment.removeprefix("% "),
        "reference": comparison.names[0],
        "runs": [
            {"run": name, **_figures(run), **_described(pair, p, flips)}
            for name, run, pair, p in zip(comparison.names, comparison.runs, pairs, adjusted, strict=True)
        ],
        "settings": comparison.settings(),
        "remarks": _remarks(comparison),
    }
    return json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line for each run, family of questions and figure, as the CSV of ``ablate``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "family", "metric", "value", "ci_low", "ci_high", "n", "path"])
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        writer.writerow([name, "all", "accuracy", *_csv(run.accuracy), run.path])
        writer.writerow([name, "all", "retention", run.retention, "", "", len(run.predictions), run.path])
    for pair, p in zip(comparison.pairs, comparison.adjusted, strict=True):
        start, end = [pair.name, "all"], ["", "", len(pair.names), pair.run.path]
        writer.writerow([*start, "accuracy_difference", *_csv(pair.difference), pair.run.path])
        figures = {"p": pair.p, "p_holm": p, "lost": len(pair.lost), "won": len(pair.won)}
        writer.writerows([*start, metric, value, *end] for metric, value in figures.items())
        for family, estimate in pair.families.items():
            writer.writerow([pair.name, family, "accuracy_difference", *_csv(estimate), pair.run.path])
    return out.getvalue()


def _csv(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high, estimate.n]


def _figures(run: ComparedRun) -> dict[str, Any]:
    return {"path": str(run.path), "n": len(run.scores), "accuracy": asdict(run.accuracy), "retention": run.retention}


def _described(pair: Pair | None, adjusted: float, flips: int) -> dict[str, Any]:
    """A run next to the reference; nothing for the reference itself."""
    if pair is None:
        return {}
    return {
        "difference": asdict(pair.difference),
        "p": pair.p,
        "p_holm": adjusted,
        "lost": len(pair.lost),
        "won": len(pair.won),
        "families": {family: asdict(estimate) for family, estimate in pair.families.items()},
        "flips": [*_flips(pair, flips)],
    }


def _runs(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    p = "p" if len(comparison.pairs) == 1 else "p (Holm)"
    header = ["run", "n", "accuracy", "retention", "difference", p, "lost", "won"]
    rows = [
        [name, str(len(run.scores)), interval(run.accuracy), percent(run.retention), *[UNKNOWN] * 4]
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    ]
    for row, pair, adjusted in zip(rows[1:], comparison.pairs, comparison.adjusted, strict=True):
        row[4:] = [interval(pair.difference, "+"), _p(adjusted), str(len(pair.lost)), str(len(pair.won))]
    return header, rows


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _note(comparison: Comparison) -> str:
    count = len(comparison.pairs)
    holm = f", adjusted for {counted(count, 'comparison')} by Holm's procedure" if count > 1 else ""
    images = counted(comparison.images, "image") if comparison.images else "no known images"
    return NOTE.format(images=images, reference=comparison.names[0], flips=FLIPS + 1, holm=holm, right=RIGHT)


def _remarks(comparison: Comparison) -> list[str]:
    without = [name for name, run in zip(comparison.names, comparison.runs, strict=True) if run.config is None]
    left_out = [f"Settings are not compared: {', '.join(without)} has no config.yaml."] if without else []
    return [remark for pair in comparison.pairs for remark in pair.remarks] + left_out


def _families(comparison: Comparison) -> list[list[str]]:
    columns = [pair.families for pair in comparison.pairs]
    families = sorted({family for column in columns for family in column})
    return [[family, _sizes(columns, family), *(interval(column.get(family), "+") for column in columns)]
            for family in families]  # fmt: skip


def _sizes(columns: Sequence[dict[str, Estimate]], family: str) -> str:
    sizes = sorted({column[family].n for column in columns if family in column})
    return " or ".join(map(str, sizes))


def _settings(comparison: Comparison) -> list[list[str]]:
    return [[key, *shortened(row)] for key, row in comparison.settings().items()]


def shortened(values: Sequence[Any]) -> list[str]:
    """Values as texts of at most ``WIDTH`` characters, from shortly before the first one in which they differ."""
    texts = ["not set" if value is None else _text(value) for value in values]
    if max(map(len, texts)) <= WIDTH:
        return texts
    present = [text for text, value in zip(texts, values, strict=True) if value is not None]
    start = max(0, len(os.path.commonprefix(present)) - CONTEXT)  # noqa: RUF071
    return [text if value is None else _cut(text, start) for text, value in zip(texts, values, strict=True)]


def _text(value: Any) -> str:
    """A value in one line, without characters that a terminal takes for commands."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _cut(text: str, start: int) -> str:
    """A part of a text, with an ellipsis where some of it is left out."""
    start = start if len(text) > WIDTH else 0
    end = f"{text[start : start + WIDTH - 2]}…" if len(text) > start + WIDTH - 1 else text[start:]
    return f"…{end}" if start else end


def _flips(pair: Pair, most: int) -> Iterator[dict[str, str]]:
    changes = [("lost", name) for name in pair.lost] + [("won", name) for name in pair.won]
    for change, name in changes[:most]:
        before, after = pair.reference.predictions[name], pair.run.predictions[name]
        yield {
            "change": change,
            "id": name,
            "question": before.question,
            "references": " | ".join(map(str, before.references)),
            "before": before.prediction,
            "after": after.prediction,
            "kept_before": f"{before.kept} of {before.total}",
            "kept": f"{after.kept} of {after.total}",
        }
