from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from glimpse_lightning.data import visual_cot
from glimpse_lightning.data.visual_cot import (
    BOX_REQUEST,
    VisualCoTBenchmark,
    VisualCoTTrain,
    draw,
    token_grid,
)
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError

ROW = {
    "question": "What bird?", "answer": "a gull", "image": "1.jpg", "width": 56, "height": 84,
    "bboxs": [[14, 21, 28, 42], [60, 0, 70, 10]], "dataset": "cub", "split": "train",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "datas/cot/cub").mkdir(parents=True)
    Image.new("RGB", (56, 84)).save(tmp_path / "datas/cot/cub/1.jpg")
    lines = [json.dumps({**ROW, "question": f"What bird is {i}?"}) for i in range(20)]
    (tmp_path / "cub_cot_train.jsonl").write_text("\n".join(lines))
    return tmp_path


def load(folder: Path, *entries: dict, **kwargs: object) -> VisualCoTTrain:
    config = folder / "set.yaml"
    plain = {"json_path": "cub_cot_train.jsonl", "mapper": "cot_train", "bbox_type": "xyxy",
             "additional_mappers": ["norm_bboxes"]}  # fmt: skip
    config.write_text(yaml.safe_dump({"datasets": [plain | entry for entry in entries]}))
    return VisualCoTTrain(str(config), data_dir=str(folder), img_dir=str(folder / "datas"), **kwargs)  # type: ignore


def test_training_rows(folder: Path) -> None:
    data = load(
        folder,
        {"sampling_strategy": "first:2", "score_funcs": ["llm"]},
        {"sampling_strategy": "end:1", "prompt": "{}\nBriefly.", "score_funcs": ["precision_match"]},
        {"sampling_strategy": "first:1", "mapper": "cot_train_fullmask", "additional_mappers": None},
    )
    assert [data[i].question for i in range(4)] == [
        "What bird is 0?", "What bird is 1?", "What bird is 19?\nBriefly.", "What bird is 0?"
    ]  # fmt: skip
    assert [data[i].family for i in range(4)] == ["llm", "llm", "precision_match", ""]
    assert data[0].boxes == [[(0.25, 0.25, 0.5, 0.5)]]  # the box beside the image is gone
    assert data[3].boxes == [[(0.0, 0.0, 1.0, 1.0)]]
    assert data[0].answers == ["a gull"]
    assert len({data[i].id for i in range(4)}) == 4


def test_sampling_is_upstreams() -> None:
    table = datasets.Dataset.from_dict({"i": list(range(100))})
    assert list(draw(100, "random:7", 42)) == table.shuffle(seed=42).select(range(7))["i"]
    assert list(draw(3, "random:7", 42)) == np.random.default_rng(42).permutation(3).tolist()
    assert (list(draw(9, "end:2", None)), list(draw(9, None, None))) == ([7, 8], list(range(9)))
    with pytest.raises(GlimpseError, match="`random:N`"):
        draw(9, "some:2", None)


@pytest.mark.parametrize(
    ("kind", "raw"), [("xywh", [14, 21, 14, 21]), ("xyxy_norm1000", [250, 250, 500, 500])]
)  # fmt: skip
def test_box_types(folder: Path, kind: str, raw: list[int]) -> None:
    (folder / "cub_cot_train.jsonl").write_text(json.dumps({**ROW, "bboxs": [raw]}))
    assert load(folder, {"bbox_type": kind})[0].boxes == [[(0.25, 0.25, 0.5, 0.5)]]


def test_lengths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is 2 x 3 visual tokens, of which the evidence touches columns 0-1 and rows 0-1."""
    assert token_grid(56, 84) == (3, 2)
    monkeypatch.setattr(visual_cot, "CHARACTERS_PER_TOKEN", 1e9)
    monkeypatch.setattr(visual_cot, "TEMPLATE_TOKENS", 10)
    assert len(load(folder, {"max_input_seq_length": 17})) == 20
    assert len(load(folder, {"max_input_remain_seq_length": 15})) == 20
    with pytest.warns(UserWarning, match="20 of 20 rows are longer"), pytest.raises(GlimpseError, match="short enough"):
        load(folder, {"max_input_seq_length": 15})
    with pytest.warns(UserWarning, match="longer"), pytest.raises(GlimpseError):
        load(folder, {"max_input_remain_seq_length": 13})


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [(1000, 500, 18, 36), (20, 20, 2, 2), (280, 10, 1, 10), (8000, 8000, 128, 128)],
)
def test_token_grid(width: int, height: int, rows: int, columns: int) -> None:
    assert token_grid(width, height) == (rows, columns)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mapper": "cot"}, "`mapper` out of cot_train"),
        ({"bbox_type": "yxyx"}, "`bbox_type`"),
        ({"additional_mappers": ["flip"]}, "`additional_mappers`"),
        ({"jsn_path": "x"}, "unknown key `jsn_path`"),
    ],
)
def test_mistakes_in_the_yaml_are_named(folder: Path, entry: dict, message: str) -> None:
    with pytest.raises(GlimpseError, match=message):
        load(folder, entry)


def test_images_stay_in_their_folder(folder: Path) -> None:
    (folder / "cub_cot_train.jsonl").write_text(json.dumps({**ROW, "image": "../../../secret.png"}))
    with pytest.raises(BadSampleError, match="leaves the folder"):
        load(folder, {})[0]


def _benchmark(folder: Path, image: str = "cot/cub/1.jpg", **row: object) -> VisualCoTBenchmark:
    path = folder / "cub.json"
    turns = [f"<image>\nWhat bird? {BOX_REQUEST}", "[0.25, 0.25, 0.5, 0.5]", "<image>", "a gull"]
    entry = {
        "dataset": "cub", "split": "test", "question_id": 3, "image": [image, f"{image}###[14, 21, 28, 42]"],
        "conversations": [{"from": "human", "value": turn} for turn in turns],
    }  # fmt: skip
    path.write_text(json.dumps([entry | row]))
    return VisualCoTBenchmark(str(path), img_dir=str(folder / "datas"))


def test_benchmark(folder: Path) -> None:
    sample = _benchmark(folder)[0]
    assert (sample.question, sample.answers, sample.family) == ("What bird?", ["a gull"], "cub")
    assert sample.boxes == [[(0.25, 0.25, 0.5, 0.5)]]
    brief = VisualCoTBenchmark(str(folder / "cub.json"), img_dir=str(folder / "datas"), brief=True)[0]
    assert brief.question == "What bird?\n\nAnswer the question using a single word or phrase."


def test_benchmark_looks_below_val(folder: Path) -> None:
    (folder / "datas/cot/cub/val").mkdir()
    (folder / "datas/cot/cub/1.jpg").rename(folder / "datas/cot/cub/val/2.jpg")
    assert _benchmark(folder, "cot/cub/2.jpg")[0].images[0].size == (56, 84)
    with pytest.raises(BadSampleError, match="no such image"):
        _benchmark(folder, "cot/cub/3.jpg")[0]
    with pytest.raises(BadSampleError, match="not a row of the benchmark"):
        _benchmark(folder, conversations=[])[0]


@pytest.mark.parametrize("change", [{"question": None}, {"answer": None}, {"width": 0}, {"bboxs": None}])
def test_a_damaged_training_row_is_a_bad_sample(folder: Path, change: dict) -> None:
    (folder / "cub_cot_train.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change))
    data = load(folder, {"max_input_seq_length": 100})
    assert data[0].answers == ["a gull"]
    with pytest.raises(BadSampleError, match=rf"cub_cot_train:1: expected .*`{next(iter(change))}`"):
        data[1]
