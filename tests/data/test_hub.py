from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
from hub_layouts import MMBENCH_ROW, PICTURE, ROWS, write_copy

from glimpse_lightning import metrics
from glimpse_lightning.data.tables.benchmarks import BENCHMARKS, LETTER, SHORT
from glimpse_lightning.data.tables.hub import HubVQA
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError
from glimpse_lightning.scorers import Random
from glimpse_lightning.training.module import PruningModule


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


EXPECTED = {  # name: (id, question, answers, family) of the first row
    "docvqa_val": ("49153", "What is the date?" + SHORT, ["1/8/93", "1/8"], ""),
    "infovqa_val": ("1", "How many?" + SHORT, ["2", "two"], ""),
    "textvqa_val": ("34602", "What brand is it?" + SHORT, ["dakota"] * 10, ""),
    "vqav2_val": ("7", "What is it?" + SHORT, ["cat"] * 10, "other"),
    "vqav2_val_lite": ("7", "What is it?" + SHORT, ["cat"] * 10, "other"),
    "vizwiz_vqa_val": (
        "VizWiz_val_1.jpg",
        "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
        ["basil"] * 10,
        "other",
    ),
    "gqa": ("201307251", "Is it overcast?" + SHORT, ["no"], ""),
    "chartqa": ("0", "How many bars?\nAnswer the question with a single word.", ["14"], "human_test"),
    "pope": ("1#0", "Is there a dog in the image?" + SHORT, ["yes"], "adversarial"),
    "pope_adv": ("1", "Is there a dog in the image?" + SHORT, ["yes"], "adversarial"),
    "pope_pop": ("1", "Is there a dog in the image?" + SHORT, ["yes"], "adversarial"),
    "pope_random": ("1", "Is there a dog in the image?" + SHORT, ["yes"], "adversarial"),
    "scienceqa_img": (
        "0", "Context: Ice is cold.\nWhich is warmer?\nA. ice\nB. tea" + LETTER, ["B", "A. ice", "B. tea"], ""
    ),
    "mmbench_en_dev": (
        "241#0",
        "Which one? There are several options:\nA. red\nB. blue\n" + LETTER,
        ["B", "A. red", "B. blue"],
        "finegrained",
    ),
    "mme": ("color/1.png#0", "Is it red?" + SHORT, ["Yes"], "color"),
    "seedbench": (
        "0", "How many?\nA. one\nB. two\nC. three\nD. four" + LETTER,
        ["C", "A. one", "B. two", "C. three", "D. four"], "image",
    ),
    "vstar_bench": ("0", "What color is the glove?\nA. rubber\nB. cotton" + LETTER, ["A"], "direct_attributes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_read_from_its_own_layout(name: str, tmp_path: Path) -> None:
    data = HubVQA(name, folder=write_copy(name, tmp_path))
    assert len(data) == len(ROWS[name])
    samples = [data[i] for i in range(len(data))]
    assert len({sample.id for sample in samples}) == len(samples)
    first = samples[0]
    assert first.images[0].size == PICTURE.size
    if name in EXPECTED:
        assert (first.id, first.question, first.answers, first.family) == EXPECTED[name]
    else:
        assert name.startswith("mmbench")
        assert (first.id, first.answers) == ("241#0", ["B", "A. red", "B. blue"] if name.endswith("dev") else [])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_scored_by_its_metric(name: str, tmp_path: Path) -> None:
    data = HubVQA(name, folder=write_copy(name, tmp_path))
    samples = [data[i] for i in range(len(data)) if data[i].answers]
    metric = getattr(metrics, BENCHMARKS[name].metric)(**BENCHMARKS[name].metric_options)
    if samples:
        said = [sample.answers[0].lower() if name.startswith("pope") else sample.answers[0] for sample in samples]
        metric.update(
            said, [s.answers for s in samples], ids=[s.id for s in samples], families=[s.family for s in samples]
        )
        value = metric.compute()
        best = {"accuracy": 1.0, "total": 200.0}
        figures = value if isinstance(value, dict) else {"accuracy": value}
        assert all(figures[key] == best[key] for key in best.keys() & figures.keys())


def test_rotations_and_hints_of_mmbench(tmp_path: Path) -> None:
    data = HubVQA("mmbench_en_dev", folder=write_copy("mmbench_en_dev", tmp_path))
    assert [data[i].id for i in range(3)] == ["241#0", "241#1", "242"]
    assert data[2].question.startswith("It is day. Which one? There are")


def test_mmbench_with_a_fifth_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, asked and scored, each rotation and all together, where only some rows have column E's option."""
    texts = ["red", "blue", "green", "grey", "pink"]
    rotations = [texts[turn:] + texts[:turn] for turn in range(5)]
    five = [
        {**MMBENCH_ROW, "index": turn * 1_000_000 + 7, **dict(zip("ABCDE", options, strict=True)),
         "answer": "ABCDE"[options.index("pink")]}
        for turn, options in enumerate(rotations)
    ]  # fmt: skip
    monkeypatch.setitem(ROWS, "mmbench_en_dev", [*five, {**MMBENCH_ROW, "E": "nan"}])
    data = HubVQA("mmbench_en_dev", folder=write_copy("mmbench_en_dev", tmp_path))
    samples = [data[i] for i in range(len(data))]
    assert samples[0].question.endswith("D. grey\nE. pink\n" + LETTER)
    assert samples[0].answers == ["E", "A. red", "B. blue", "C. green", "D. grey", "E. pink"]
    assert samples[5].answers == ["B", "A. red", "B. blue"]
    for said, accuracy, circular in (
        (["E.", "D", "C.", "pink", "A", "B"], 1.0, 1.0),
        (["E", "E", "C", "B", "A", "B"], 5 / 6, 0.5),
    ):
        metric = metrics.MultipleChoice("infer", circular=True)
        metric.update(said, [s.answers for s in samples], [s.id for s in samples], [s.family for s in samples])
        assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx(
            {"accuracy": accuracy, "circular_accuracy": circular}
        )


def test_words_of_textvqa_are_shown_on_request(tmp_path: Path) -> None:
    data = HubVQA("textvqa_val", folder=write_copy("textvqa_val", tmp_path), ocr=True)
    assert data[0].question == "What brand is it?\nReference OCR token: dakota" + SHORT
    with pytest.raises(GlimpseError, match="gqa has no words"):
        HubVQA("gqa", ocr=True)


def test_frames_of_a_video_are_images(tmp_path: Path) -> None:
    assert len(HubVQA("seedbench", folder=write_copy("seedbench", tmp_path))[1].images) == 2


def test_suffix_and_size(tmp_path: Path) -> None:
    folder = write_copy("chartqa", tmp_path)
    data = HubVQA("chartqa", folder=folder, suffix=" Why?", size=1)
    assert (len(data), data[0].question) == (1, "How many bars? Why?")
    streamed = HubVQA("chartqa", folder=folder, streaming=True, size=2)
    assert [streamed[i].answers for i in range(2)] == [["14"], ["57%"]]
    with pytest.raises(GlimpseError, match="`size` together with"):
        HubVQA("chartqa", folder=folder, streaming=True)


def test_the_cache_serves_without_network(tmp_path: Path) -> None:
    """The cache as a fetch leaves it; the test run is offline, so nothing else can serve the second load."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    datasets.load_dataset("parquet", data_files=f"{write_copy('chartqa', tmp_path)}/default/*.parquet", split="train")
    (prepared,) = (path for path in (cache / "parquet").glob("default-*/*/*") if path.is_dir())
    home = cache / "lmms-lab-encoder___chart_qa" / "default" / "0.0.0" / "0123456789abcdef"
    home.parent.mkdir(parents=True)
    for file in shutil.move(prepared, home).iterdir():
        file.rename(home / file.name.replace("parquet-train", "chart_qa-test"))
    info = home / "dataset_info.json"
    info.write_text(info.read_text().replace('"train"', '"test"'))
    data = HubVQA("chartqa")
    assert [data[i].answers for i in range(2)] == [["14"], ["57%"]]


def test_what_cannot_be_had_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(GlimpseError, match=r"hf download .*chartqa|hf download lmms-lab-encoder/ChartQA"):
        HubVQA("chartqa")
    with pytest.raises(GlimpseError, match="out of docvqa_val"):
        HubVQA("docvqa")
    folder = write_copy("chartqa", tmp_path)
    with pytest.raises(GlimpseError, match="split train"):
        HubVQA("chartqa", folder=folder, split="train")


def test_bombs_from_the_hub_are_refused(tmp_path: Path) -> None:
    data = HubVQA("chartqa", folder=write_copy("chartqa", tmp_path), max_pixels=100)
    with pytest.raises(BadSampleError, match=r"row 0: its image: expected at most 100 pixels"):
        data[0]


@pytest.fixture(scope="module")
def module() -> PruningModule:
    return PruningModule(after_layer=1, scorer=Random(), policy=KeepRatio(0.5), max_new_tokens=2)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_answered_by_glimpse_tiny(name: str, tmp_path: Path, module: PruningModule) -> None:
    data = HubVQA(name, folder=write_copy(name, tmp_path))
    samples = [data[i] for i in range(len(data))]
    assert len(module.answer(samples)) == len(samples)
