"""Tasks of a suite: a dataset, the metric of its answers, and their greatest length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.tables.benchmarks import BENCHMARKS
from glimpse_lightning.data.tables.hub import HubVQA
from glimpse_lightning.data.tables.rows import OnError
from glimpse_lightning.data.visual_cot import VisualCoTBenchmark
from glimpse_lightning.evaluation.chosen_metric import find_metric
from glimpse_lightning.metrics import AnswerMetric
from glimpse_lightning.metrics.judge_score import VISUAL_COT_SETS
from glimpse_lightning.runtime.errors import GlimpseError, nearest

VISUAL_COT, GLYPH_VQA = "visual_cot/", "glyph_vqa"
NAMES = (*BENCHMARKS, *(f"{VISUAL_COT}{name}" for name in VISUAL_COT_SETS), GLYPH_VQA)


@dataclass(frozen=True)
class Task:
    """One dataset of a suite.

    Attributes:
        name: name of the task.
        dataset: questions of the task.
        max_new_tokens: length of the longest answer.
        metric: metric of the answers.
    """

    name: str
    dataset: Dataset[Sample]
    max_new_tokens: int
    metric: AnswerMetric


@dataclass(frozen=True)
class Places:
    """Folders of the data of tasks.

    Args:
        data_dir: folder with a copy of each Hub repository under its own name (`DocVQA`, ...); default: the Hub, or its
            cache.
        benchmark_dir: folder of Visual-CoT's benchmark files.
        img_dir: folder that Visual-CoT's image paths are relative to.
    """

    data_dir: str | None = None
    benchmark_dir: str = "viscot_benchmark/benchmark"
    img_dir: str = "datas"


def check_name(name: str) -> None:
    """Raise an error if no task has this name.

    Raises:
        GlimpseError: if no task has this name; the message lists all names.
    """
    if name not in NAMES:
        raise GlimpseError(f"Expected `data.tasks` out of {', '.join(NAMES)}, but got {name!r}.{nearest(name, NAMES)}")


def make_task(
    name: str,
    places: Places,
    limit: int | None = None,
    brief: bool = False,
    streaming: bool = False,
    on_error: OnError = "raise",
    ocr: bool = False,
) -> Task:
    """Open the data of a task.

    Args:
        name: name of the task.
        places: folders of the data.
        limit: number of questions, from the first one on; ``None``: all.
        brief: whether Visual-CoT's prompts ask for a single word or phrase.
        streaming: whether to fetch these questions from the Hub without storing the dataset.
        on_error: treatment of a row that cannot be used.
        ocr: whether the words read in an image are shown below its question, if the benchmark has them.

    Raises:
        GlimpseError: if the name is unknown or the data is missing.
    """
    check_name(name)
    if name == GLYPH_VQA:
        return Task(name, GlyphVQA("test", size=limit or 2000), 16, task_metric(name))
    if name.startswith(VISUAL_COT):
        file = Path(places.benchmark_dir) / f"{name.removeprefix(VISUAL_COT)}.json"
        if not file.is_file():
            raise GlimpseError(
                f"{file}: no such file; name the folder of Visual-CoT's files by `--data.places.benchmark_dir DIR`. "
                "They are viscot_benchmark/benchmark/ of https://github.com/deepcs233/Visual-CoT; their images, for "
                "`--data.places.img_dir`, are at https://huggingface.co/datasets/deepcs233/Visual-CoT."
            )
        data = VisualCoTBenchmark(str(file), places.img_dir, brief, limit, on_error)
        return Task(name, data, 1024, task_metric(name))
    benchmark = BENCHMARKS[name]
    folder = Path(places.data_dir) / benchmark.hub_id.split("/")[-1] if places.data_dir else None
    hidden = benchmark.columns.answers is None
    questions = HubVQA(
        name,
        folder=str(folder) if folder else None,
        ocr=ocr and benchmark.ocr is not None,
        size=limit,
        streaming=streaming,
        on_error=on_error,
        require_answers=not hidden,
    )
    return Task(name, questions, benchmark.max_new_tokens, task_metric(name))


def task_metric(name: str) -> AnswerMetric:
    """The default metric of a task.

    Answers to Visual-CoT are scored by similarity (:class:`ANLS`) until a judge scores them (``score --judge``).
    Answers to questions of your own, and those without a task, are scored by :class:`ExactMatch`. The metric does not
    gather from other ranks, because it gets the predictions of all ranks, read from their files.
    """
    if name in BENCHMARKS:
        return find_metric(BENCHMARKS[name].metric, BENCHMARKS[name].metric_options)
    if name.startswith(VISUAL_COT):
        return find_metric("ANLS", {"lengths": "normalised"})
    return find_metric("ExactMatch")
