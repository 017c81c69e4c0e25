"""The paper's tables: what is run for each, what it needs, and the figures that it is compared with.

Figures are those of GlimpsePrune (arXiv 2508.01548). A figure that was not published has no value.
"""

from __future__ import annotations

from dataclasses import dataclass

JUDGED = "the paper's judge samples at temperature 0.7; here another prompt is read at temperature 0"
SAME = "greedy answers; kernels and versions move single ones"
COUNTED = "a mean over 9,281 questions; thresholds meet scores that kernels round otherwise"
MACHINE = "another GPU and other kernels than the paper's"


@dataclass(frozen=True)
class Model:
    """A model or a pruner on the Hub, and the version to take; ``None``: its newest, which the results name."""

    name: str
    revision: str | None


BACKBONE = Model("Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5")
PRUNER = Model("ashun989/GlimpsePrune_Qwen2.5-VL-7B-Instruct", None)


@dataclass(frozen=True)
class Needs:
    """Hours on one GPU (from, to), its memory and the disk in GiB, and the data; estimates, none measured."""

    hours: tuple[float, float]
    gpu: int
    disk: int
    data: str


@dataclass(frozen=True)
class Run:
    """One run of ``test``.

    Attributes:
        name: folder of the run.
        flags: settings beyond those of the table.
        cap: largest share of the visual tokens that the pruner's policy keeps; ``None``: as it was saved.
    """

    name: str
    flags: tuple[str, ...] = ()
    cap: float | None = None


@dataclass(frozen=True)
class Figure:
    """A cell of a table.

    Attributes:
        label: what it says.
        run: name of the run that it is measured in.
        key: name of the measured figure (:func:`~glimpse_lightning.reproduction.measured.figures`).
        paper: the published value; ``None``: not published.
        tolerance: largest difference that counts as the same, in the figure's unit.
        why: reason of the tolerance.
    """

    label: str
    run: str
    key: str
    paper: float | None
    tolerance: float = 0.0
    why: str = SAME


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: what it shows.
        config: recipe of its runs.
        judged: whether a judge reads the answers.
        costs: number of questions whose time and memory are measured; 0: none.
        common: settings of all runs.
    """

    title: str
    config: str
    needs: Needs
    runs: tuple[Run, ...]
    figures: tuple[Figure, ...]
    judged: bool = False
    costs: int = 0
    common: tuple[str, ...] = ()


VISUAL_COT = "Visual-CoT's benchmark files and images: --data.places.benchmark_dir and --data.places.img_dir"
FREE_FORM = Needs((8, 16), 40, 60, VISUAL_COT)
CAPS = {0.111: (0.074, 0.761), 0.222: (0.115, 0.764), 0.333: (0.139, 0.765)}
"""Kept share and judge score by cap."""

TABLES = {
    "free_form": Table(
        "Qwen2.5-VL-7B on the twelve sets of Visual-CoT, judge score",
        "eval/free_form",
        FREE_FORM,
        (Run("threshold"),),
        (
            Figure("full model, judge score", "threshold", "full_judge", 0.761, 0.02, JUDGED),
            Figure("threshold alone, judge score", "threshold", "judge", 0.764, 0.02, JUDGED),
            Figure("threshold alone, visual tokens kept", "threshold", "retention", 0.179, 0.01, COUNTED),
        ),
        judged=True,
    ),
    "free_form_capped": Table(
        "Qwen2.5-VL-7B on the twelve sets of Visual-CoT, at most a given share of visual tokens per question",
        "eval/free_form",
        Needs((12, 24), 40, 60, VISUAL_COT),
        tuple(Run(f"cap_{cap}", ("--model.full", "false"), cap) for cap in CAPS),
        tuple(
            Figure(f"cap {cap:.1%}, {label}", f"cap_{cap}", key, value, tolerance, why)
            for cap, (kept, score) in CAPS.items()
            for label, key, value, tolerance, why in (
                ("visual tokens kept", "retention", kept, 0.01, COUNTED),
                ("judge score", "judge", score, 0.02, JUDGED),
            )
        ),
        judged=True,
    ),
    "short_form": Table(
        "Qwen2.5-VL-7B on ten short-form benchmarks, as lmms-eval scores them",
        "eval/short_form",
        Needs((20, 40), 40, 120, "from the Hub, or copies of its repositories in --data.places.data_dir"),
        (Run("threshold"),),
        (
            Figure("full model, mean of tasks", "threshold", "full_accuracy", None),
            Figure("GlimpsePrune, mean of tasks", "threshold", "accuracy", None),
            Figure("GlimpsePrune, visual tokens kept", "threshold", "retention", None),
        ),
    ),
    "efficiency": Table(
        "Qwen2.5-VL-7B, 100 DocVQA samples, batch 1",
        "eval/documents",
        Needs((0.2, 0.5), 40, 30, "from the Hub, or a copy of its repository in --data.places.data_dir"),
        (Run("threshold"),),
        (
            Figure("visual tokens of the full model", "threshold", "tokens", 5073.9, 100, "the paper counts text, too"),
            Figure("visual tokens kept", "threshold", "kept", 202.5, 50, "the paper counts text, too"),
            Figure("key-value cache, share", "threshold", "kv_bytes", 202.5 / 5073.9, 0.02, "the paper counts tokens"),
            Figure("time to first token, share", "threshold", "ttft", None),
            Figure("peak memory, share", "threshold", "peak_bytes", 0.728, 0.05, MACHINE),
        ),
        costs=20,
        common=("--data.tasks", "[docvqa_val]", "--limit", "100"),
    ),
}
"""Tables by the name under which they are asked for."""
