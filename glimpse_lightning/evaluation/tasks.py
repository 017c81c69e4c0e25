"""What an evaluation can be made of: a dataset, how its answers are scored, and how long they may be."""

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
from glimpse_lightning.runtime.errors import GlimpseError

VISUAL_COT, GLYPH_VQA = "visual_cot/", "glyph_vqa"
NAMES = (*BENCHMARKS, *(f"{VISUAL_COT}{name}" for name in VISUAL_COT_SETS), GLYPH_VQA)


@dataclass(frozen=True)
class Task:
    """One dataset of a suite.

    Attributes:
        name: of the task.
        dataset: its questions.
        max_new_tokens: longest answer.
        metric: how answers are scored.
    """

    name: str
    dataset: Dataset[Sample]
    max_new_tokens: int
    metric: AnswerMetric


@dataclass(frozen=True)
class Places:
    """Where data lies.

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
    """Raise where no task has this name.

    Raises:
        GlimpseError: with the names there are.
    """
    if name not in NAMES:
        raise GlimpseError(f"Expected `data.tasks` out of {', '.join(NAMES)}, but got {name!r}.")


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
        name: of the task.
        places: where data lies.
        limit: use the first so many questions.
        brief: ask Visual-CoT's questions for a single word or phrase.
        streaming: fetch these questions from the Hub without storing the dataset.
        on_error: what a row that cannot be used does.
        ocr: show the words read in an image below its question, where a benchmark has them.

    Raises:
        GlimpseError: where the name is unknown or the data is not there.
    """
    check_name(name)
    if name == GLYPH_VQA:
        return Task(name, GlyphVQA("test", size=limit or 2000), 16, task_metric(name))
    if name.startswith(VISUAL_COT):
        file = Path(places.benchmark_dir) / f"{name.removeprefix(VISUAL_COT)}.json"
        if not file.is_file():
            raise GlimpseError(
                f"{file}: no such file; name the folder of Visual-CoT's files by `--data.places.benchmark_dir DIR`."
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
    """How answers of a task are scored where nobody chose.

    Visual-CoT's are scored by similarity (:class:`ANLS`) until a judge has read them: ``score --judge``. Questions of
    your own, and those without a task, by :class:`ExactMatch`. The metric does not gather from ranks: it is for
    predictions of all of them, read from their files.
    """
    if name in BENCHMARKS:
        return find_metric(BENCHMARKS[name].metric, BENCHMARKS[name].metric_options)
    if name.startswith(VISUAL_COT):
        return find_metric("ANLS", {"lengths": "normalised"})
    return find_metric("ExactMatch")
