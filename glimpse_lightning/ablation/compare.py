"""The command line of ``compare``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from glimpse_lightning.ablation import compare_report as report
from glimpse_lightning.ablation.compared_runs import ComparedRun, read_run
from glimpse_lightning.ablation.comparison import Comparison, compared
from glimpse_lightning.ablation.latex import origin
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import write_text


def _parser() -> CommandParser:
    parser = CommandParser(
        "compare",
        "Compare finished runs question by question with the first of them. docs/compare.md explains the table.",
        "`compare` reads finished runs and takes no option of a recipe.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a recipe's runs")
    parser.add_argument("--reference", type=Path, metavar="RUN", help="run that the others are compared with")
    parser.add_argument("--flips", type=int, default=0, metavar="N", help="list N changed answers of each run")
    parser.add_argument("--latex", action="store_true", help="print the table of runs for LaTeX, and nothing else")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write a file: .md, .json, .csv or .tex")
    return parser


def run(args: Sequence[str]) -> int:
    """Compare the runs that ``args`` name; returns the exit status.

    Raises:
        GlimpseError: where runs are missing, unfinished, damaged, or not about the same questions.
    """
    options = _parser().parse_args(list(args))
    if options.flips < 0:
        raise GlimpseError(f"Expected `--flips` of at least 0, but got {options.flips}.")
    comment = origin("compare", args)
    writers: Mapping[str, Callable[[Comparison], str]] = {
        ".md": lambda found: report.markdown(found, options.flips, comment),
        ".json": lambda found: report.as_json(found, options.flips, comment),
        ".csv": report.as_csv,
        ".tex": lambda found: report.latex(found, comment),
    }
    _check_output(options.output, [*writers])
    found = compared(_ordered([read_run(path) for path in options.runs], options.reference))
    if options.latex:
        print(report.latex(found, comment), end="")
    else:
        report.print_comparison(found, options.flips)
    if options.output is not None:
        _write(options.output, writers[options.output.suffix](found), found)
    return 0


def _ordered(runs: list[ComparedRun], reference: Path | None) -> list[ComparedRun]:
    """The runs with the reference in front, which need not be one of them."""
    if reference is None:
        return runs
    first = read_run(reference)
    others = [run for run in runs if run.path != first.path]
    return [first, *others]


def _check_output(path: Path | None, suffixes: Sequence[str]) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise GlimpseError(f"{path}: expected `--output` to end in {', '.join(suffixes)}, but got {path.suffix!r}.")
    if path.is_dir():
        raise GlimpseError(f"{path}: expected `--output` to be a file, but it is a folder. Name a file in it.")


def _write(path: Path, text: str, found: Comparison) -> None:
    if path.suffix == ".json" and path.resolve().parent in [run.path for run in found.runs]:
        raise GlimpseError(
            f"{path}: the JSON files of a run's folder are the run's own. Name a file in another folder."
        )
    try:
        write_text(path, text)
    except OSError as error:
        raise GlimpseError(f"{path}: writing failed: {error.strerror or error}. Name another `--output`.") from None
