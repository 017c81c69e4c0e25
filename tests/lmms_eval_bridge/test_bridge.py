"""``lmms-eval --model glimpse`` on a task that is built here: a YAML file, its functions and a Parquet file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torchvision_operators
from lmms_eval.__main__ import cli_evaluate
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from glimpse_lightning import GlyphVQA, PruningModule, save_pruner
from glimpse_lightning.integrations.lmms_eval.model import Glimpse, as_image, cut, generation_options
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import Random

SIZE = 10
YAML = """\
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_visual: !function functions.visuals
doc_to_text: !function functions.text
doc_to_target: answer
generation_kwargs: {generation}
process_results: !function functions.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
def visuals(doc):
    return ["clip.mp4"] if doc["video"] else [image.convert("RGB") for image in doc["images"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, said):
    return {"right": float(said[0].lower() == doc["answer"].lower())}
"""


def samples() -> list[Any]:
    data = GlyphVQA("test", size=SIZE)
    return [data[index] for index in range(SIZE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks `glyphs` (one image), `pairs` (two images), `words` (none) and `clips` (a video)."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "functions.py").write_text(FUNCTIONS)
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"),
         "images": datasets.List(datasets.Image()), "video": datasets.Value("bool")}
    )  # fmt: skip
    for name, images in {"glyphs": 1, "pairs": 2, "words": 0, "clips": 0}.items():
        rows = [
            {"question": s.question, "answer": s.answers[0], "images": s.images * images, "video": name == "clips"}
            for s in samples()
        ]
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
        generation = "{max_new_tokens: 16, temperature: 0, do_sample: false}"
        text = YAML.format(name=name, data=folder / f"{name}.parquet", kind="generate_until", generation=generation)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def evaluate(folder: Path, tasks: str, model_args: str, *options: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the command line writes: results, and the samples of each task."""
    out = folder / f"out{len(list(folder.glob('out*')))}"
    args = ["lmms-eval", "--model", "glimpse", "--model_args", model_args, "--tasks", tasks]
    args += ["--include_path", str(folder), "--output_path", str(out), "--log_samples", "--verbosity", "DEBUG"]
    before, sys.argv = sys.argv, [*args, *options]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return read(out)


def read(out: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    (results,) = out.rglob("*_results.json")
    said = {
        path.stem.split("_samples_")[1]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in out.rglob("*_samples_*.jsonl")
    }
    return json.loads(results.read_text()), said


def answers(rows: list[Any]) -> list[str]:
    return [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]


def own_answers(module: PruningModule) -> list[str]:
    module.max_new_tokens = 16
    module.configure_model()
    return module.answer(samples())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruningModule, Path]:
    module = PruningModule(after_layer=0, scorer=Random(seed=3), policy=KeepRatio(0.25))
    module.configure_model()
    place = tmp_path_factory.mktemp("pruner")
    assert module.model.pruner is not None
    save_pruner(module.model.pruner, place)
    return module, place


def test_it_is_registered() -> None:
    assert get_model("glimpse") is Glimpse


def test_the_full_model_answers_as_everywhere(folder: Path) -> None:
    results, said = evaluate(folder, "glyphs", "pretrained=glimpse-tiny", "--batch_size", "4")
    expected = own_answers(PruningModule())
    assert answers(said["glyphs"]) == expected
    right = sum(a.lower() == s.answers[0].lower() for a, s in zip(expected, samples(), strict=True)) / SIZE
    assert results["results"]["glyphs"]["right,none"] == pytest.approx(right)
    assert right > 0.5
    assert results["throughput"]["avg_retention"] == 1.0
    assert results["throughput"]["total_gen_tokens"] > SIZE


def test_a_recipe_prunes_and_retention_is_logged(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results, said = evaluate(folder, "glyphs,words", "recipe=methods/fastv", "--batch_size", "3")
    (fastv,) = [text for text in capfd.readouterr().out.splitlines() if text.startswith("|avg_retention_glyphs")]
    assert "0.1094" in fastv  # beside the results
    assert results["throughput"]["avg_retention"] == pytest.approx(7 / 64)  # words have no image and do not count
    assert "avg_retention_words" not in results["throughput"]
    assert len(answers(said["words"])) == SIZE


def test_a_saved_pruner_and_batches(folder: Path, pruned: tuple[PruningModule, Path]) -> None:
    """Answers do not depend on who shares the batch, but for the rounding of a sum that may tip a close decision."""
    module, place = pruned
    args = f"pretrained=glimpse-tiny,pruner={place},dtype=float32"
    alone, together = (evaluate(folder, "pairs", args, "--batch_size", size) for size in ("1", "10"))
    assert answers(alone[1]["pairs"]) == answers(together[1]["pairs"])
    assert alone[0]["throughput"]["avg_retention"] == together[0]["throughput"]["avg_retention"] == 0.25
    assert module.model.pruner is not None


def test_gen_kwargs_of_the_command_line(folder: Path) -> None:
    short = evaluate(folder, "glyphs", "pretrained=glimpse-tiny", "-b", "5", "--gen_kwargs", "max_new_tokens=1")[1]
    assert {row["token_counts"][0]["output_tokens"] for row in short["glyphs"]} <= {0, 1}


def test_generation_arguments_are_honoured() -> None:
    """Greedy and sampled questions in one call; a temperature differs from seed to seed; a text to stop at."""
    model = Glimpse(pretrained="glimpse-tiny", batch_size=5)
    model.task_dict = {"t": {"test": samples()}}

    def said(*kwargs: dict[str, Any]) -> list[str]:
        requests = [
            Instance(
                "generate_until",
                (sample.question, kwargs[index % len(kwargs)], lambda s: s.images, index, "t", "test"),
                idx=0,
                metadata={"task": "t", "doc_id": index, "repeats": 1},
            )
            for index, sample in enumerate(samples())
        ]
        return [result.text for result in model.generate_until(requests)]

    greedy, hot = {"max_new_tokens": 16, "temperature": 0}, {"max_new_tokens": 16, "temperature": 5.0}
    plain = said(greedy)
    sampled = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sampled.append(said(hot))
    assert sampled[0] == sampled[1] != sampled[2]
    mixed = said(greedy, hot)
    assert mixed[::2] == plain[::2]
    assert mixed[1::2] != plain[1::2]
    letter = plain[0][-1]
    assert said({**greedy, "until": [letter]}) == [answer.split(letter)[0].strip() for answer in plain]


def test_options_and_cutting() -> None:
    assert generation_options({}, 128) == {"max_new_tokens": 128, "do_sample": False}
    told = {"max_new_tokens": 8, "temperature": 0, "top_p": 0.9, "top_k": 5, "num_beams": 3, "do_sample": True}
    assert generation_options(told, 128) == {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    warm = generation_options({"temperature": 0.5, "do_sample": False, "top_k": 5, "top_p": None}, 1)
    assert warm == {"max_new_tokens": 1, "do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 5}
    assert cut(" a b\n\nc", ["\n\n", "b"]) == "a"
    assert cut("a b", "b") == "a"
    assert cut("a b ", None) == cut("a b", []) == cut("a b", [""]) == "a b"


def test_what_it_shows_must_be_images(folder: Path) -> None:
    with pytest.raises(GlimpseError, match=r"clips/test/0: .* shows a video; choose image tasks"):
        evaluate(folder, "clips", "pretrained=glimpse-tiny")
    with pytest.raises(GlimpseError, match="shows an object of type dict"):
        as_image({"array": [0.0], "sampling_rate": 1}, "x")
    Image.new("LA", (3, 5)).save(folder / "grey.png")
    assert as_image(str(folder / "grey.png"), "x").mode == "RGB"
    assert as_image(Image.new("CMYK", (3, 5)), "x").mode == "RGB"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "`pretrained=NAME` among"),
        ({"recipe": "vip_kl"}, "trains its pruner"),
        ({"recipe": "methods/fastv", "pruner": "x"}, "got both"),
        ({"recipe": "methods/fastw"}, "Did you mean methods/fastv"),
        ({"pretrained": "glimpse-tiny", "batch_size": "auto"}, "`--batch_size` to be a number"),
    ],
)
def test_arguments_that_do_not_go_together(args: dict[str, str], message: str) -> None:
    with pytest.raises(GlimpseError, match=message):
        Glimpse(**args)  # type: ignore[arg-type]


def test_what_it_cannot_do_is_said() -> None:
    model = Glimpse(pretrained="glimpse-tiny")
    arguments = ("q", {"image_aspect_ratio": "original"}, lambda doc: None, 0, "t", "test")
    request = Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})
    with pytest.raises(GlimpseError, match="t compares likelihoods"):
        model.loglikelihood([request])
    with pytest.raises(GlimpseError, match="t asks in several rounds"):
        model.generate_until_multi_round([request])
    assert model.generate_until([]) == []


def test_two_processes(folder: Path, pruned: tuple[PruningModule, Path], tmp_path: Path) -> None:
    """Seven questions over two processes: the padded eighth counts nowhere, retention is that of both."""
    model_args = f"pretrained=glimpse-tiny,pruner={pruned[1]}"
    alone, said = evaluate(folder, "glyphs", model_args, "--limit", "7")
    (tmp_path / "sitecustomize.py").write_text(Path(torchvision_operators.__file__).read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["lmms_eval", "--model", "glimpse", "--model_args", model_args, "--tasks", "glyphs", "--limit", "7"]
    command += ["--include_path", str(folder), "--output_path", str(tmp_path / "out"), "--log_samples", "-b", "2"]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=os.environ | environment, check=True, timeout=250)
    both, shared = read(tmp_path / "out")
    assert answers(shared["glyphs"]) == answers(said["glyphs"])
    assert both["results"]["glyphs"]["right,none"] == alone["results"]["glyphs"]["right,none"]
    for name in ("avg_retention", "avg_retention_p10", "avg_retention_glyphs"):
        assert both["throughput"][name] == alone["throughput"][name]
