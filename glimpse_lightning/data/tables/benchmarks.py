"""The public benchmarks, each declared in a few lines: its location, columns, prompts and scoring.

Prompts, columns and scoring are those of lmms-eval. The owner in hub ids is the one since July 2026; before, it was
``lmms-lab``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from glimpse_lightning.data.tables.columns import Columns, Wording
from glimpse_lightning.runtime.errors import GlimpseError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
UNSAID = 128  # longest answer if the task's file names none: lmms-eval 0.3.5's default for Qwen2.5-VL
CHINESE_LETTER = "\n请直接使用所提供的选项字母作为答案回答。"


@dataclass(frozen=True)
class Join:
    """Images in another configuration of the same dataset: ``key`` of a question equals ``image_key`` there."""

    config: str
    split: str
    key: str
    image_key: str = "id"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        hub_id, config, split: location on the Hub.
        columns, wording: mapping of columns, and wording of the prompt.
        metric, metric_options: name of a class in ``glimpse_lightning.metrics``, and its arguments.
        max_new_tokens: length of the longest answer.
        join: location of the images; ``None``: next to the questions.
        id_modulo: modulus of ids: ids that are equal modulo this number belong to one question (rotations of its
            options); 0: none.
        ocr: column of the words read in the image, which can be shown with the question; ``None``: no such column.
        revision: version of the dataset against which the columns were checked; ``None``: the newest.
    """

    hub_id: str
    split: str
    config: str | None = None
    columns: Columns = field(default_factory=Columns)
    wording: Wording = field(default_factory=lambda: Wording(suffix=SHORT, strip=False))
    metric: str = "ExactMatch"
    metric_options: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 16
    join: Join | None = None
    id_modulo: int = 0
    ocr: str | None = None
    revision: str | None = None


DOCVQA = Benchmark(
    "lmms-lab-encoder/DocVQA", "validation", "DocVQA", Columns(id="questionId"), metric="ANLS", max_new_tokens=32
)
VQAV2 = Benchmark(
    "lmms-lab-encoder/VQAv2",
    "validation",
    columns=Columns(id="question_id", family="answer_type"),
    metric="VQAAccuracy",
    metric_options={"normaliser": "vqav2"},
)
POPE = Benchmark(
    "lmms-lab-encoder/POPE",
    "test",
    columns=Columns(answers="answer", id="question_id", family="category"),
    wording=Wording(suffix=SHORT),
    metric="POPE",
    max_new_tokens=128,
)
MMBENCH = Benchmark(
    "lmms-lab-encoder/MMBench",
    "dev",
    "en",
    Columns(
        answers="answer",
        id="index",
        family="L2-category",
        options=["A", "B", "C", "D"],
        more_options=["E", "F", "G", "H"],
        hint="hint",
    ),
    # lmms-eval joins prompt and suffix with a line break, and its suffix begins with one as well.
    Wording("{hint}{question} There are several options:\n{options}\n", hint="{hint} ", suffix=LETTER, strip=False),
    metric="MultipleChoice",
    metric_options={"rule": "infer", "circular": True},
    max_new_tokens=1024,
    id_modulo=1_000_000,
)
HIDDEN = replace(MMBENCH.columns, answers=None)  # answers of the test split are not public
MMBENCH_CN = replace(
    MMBENCH,
    config="cn",
    wording=replace(MMBENCH.wording, suffix=CHINESE_LETTER),  # the line above the options stays English
    max_new_tokens=256,
)

BENCHMARKS: dict[str, Benchmark] = {
    "docvqa_val": DOCVQA,
    "infovqa_val": replace(DOCVQA, config="InfographicVQA"),
    "textvqa_val": Benchmark(
        "lmms-lab-encoder/textvqa",
        "validation",
        columns=Columns(id="question_id"),
        wording=Wording("{question}{ocr}", suffix=SHORT, capitalize=True, strip=False),
        metric="VQAAccuracy",
        max_new_tokens=UNSAID,
        ocr="ocr_tokens",
    ),
    "vqav2_val": VQAV2,
    "vqav2_val_lite": replace(VQAV2, hub_id="lmms-lab-encoder/LMMs-Eval-Lite", config="vqav2_val", split="lite"),
    "vizwiz_vqa_val": Benchmark(
        "lmms-lab-encoder/VizWiz-VQA",
        "val",
        columns=Columns(id="question_id", family="category"),
        wording=Wording(suffix=UNANSWERABLE + SHORT, capitalize=True, strip=False),
        metric="VQAAccuracy",
        max_new_tokens=UNSAID,
    ),
    "gqa": Benchmark(
        "lmms-lab-encoder/GQA",
        "testdev",
        "testdev_balanced_instructions",
        Columns(answers="answer", id="id"),
        metric="ExactMatch",
        metric_options={"punctuation": "all"},
        join=Join("testdev_balanced_images", "testdev", "imageId"),
    ),
    "chartqa": Benchmark(
        "lmms-lab-encoder/ChartQA",
        "test",
        columns=Columns(answers="answer", family="type"),
        wording=Wording(suffix="\nAnswer the question with a single word.", strip=False),
        metric="RelaxedAccuracy",
    ),
    "pope": POPE,
    **{
        f"pope_{short}": replace(POPE, config="Full", split=split)
        for short, split in {"adv": "adversarial", "pop": "popular", "random": "random"}.items()
    },
    "scienceqa_img": Benchmark(
        "lmms-lab-encoder/ScienceQA",
        "test",
        "ScienceQA-IMG",
        Columns(answers="answer", options="choices", hint="hint"),
        Wording("{hint}{question}\n{options}", hint="Context: {hint}\n", suffix=LETTER, strip=False),
        metric="MultipleChoice",
    ),
    "mmbench_en_dev": MMBENCH,
    "mmbench_en_test": replace(MMBENCH, split="test", columns=HIDDEN),
    "mmbench_cn_dev": MMBENCH_CN,
    "mmbench_cn_test": replace(MMBENCH_CN, split="test", columns=HIDDEN),
    "mme": Benchmark(
        "lmms-lab-encoder/MME",
        "test",
        columns=Columns(answers="answer", id="question_id", family="category"),
        wording=Wording(suffix=SHORT, drop=" Please answer yes or no."),
        metric="MME",
    ),
    "seedbench": Benchmark(
        "lmms-lab-encoder/SEED-Bench",
        "test",
        columns=Columns(
            answers="answer",
            id="question_id",
            family="data_type",
            options=["choice_a", "choice_b", "choice_c", "choice_d"],
        ),
        wording=Wording("{question}\n{options}", suffix=LETTER, strip=False),
        metric="MultipleChoice",
        metric_options={"rule": "first"},
        max_new_tokens=UNSAID,
    ),
    "vstar_bench": Benchmark(
        "lmms-lab-encoder/vstar-bench",
        "test",
        columns=Columns(question="text", answers="label", id="question_id", family="category"),
        wording=Wording(suffix=LETTER, inline_options=True),
        metric="MultipleChoice",
        metric_options={"rule": "search"},
    ),
}
"""Benchmarks by their names in lmms-eval."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``.

    Raises:
        GlimpseError: if there is no benchmark of that name.
    """
    if name not in BENCHMARKS:
        raise GlimpseError(f"Expected a benchmark out of {', '.join(BENCHMARKS)}, but got {name!r}.")
    return BENCHMARKS[name]
