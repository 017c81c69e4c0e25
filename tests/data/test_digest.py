"""A digest of data follows its contents: equal where these are, different where anything that is read differs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import glimpse_lightning as gl
from glimpse_lightning.data.digest import GENERATED, digest
from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.some import Some
from glimpse_lightning.data.tables.table import Table
from glimpse_lightning.data.visual_cot import VisualCoTBenchmark


def rows(**changes: Any) -> list[dict[str, Any]]:
    first = {"id": "a", "question": "what", "answers": ["left", "the left one"], "image": "a.png"}
    return [{**first, **changes}, {"id": "b", "question": "which", "answers": ["right"], "image": "b.png"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    return tmp_path


def of_jsonl(folder: Path, **changes: Any) -> Any:
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(**changes)))
    return digest(JSONL(str(folder / "d.jsonl")))


def of_table(folder: Path, **changes: Any) -> Any:
    (folder / "d.json").write_text(json.dumps(rows(**changes)))
    return digest(Table(str(folder / "d.json")))


@pytest.mark.parametrize("of", [of_jsonl, of_table])
def test_what_is_read_decides(folder: Path, of: Any) -> None:
    plain = of(folder)
    assert plain["rows"] == 2
    assert "path, size and time" in plain["of"]
    assert of(folder) == plain
    for change in ({"question": "who"}, {"answers": ["left"]}, {"image": "b.png"}):
        assert of(folder, **change)["digest"] != plain["digest"]
    os.utime(folder / "a.png", (2, 2))
    assert of(folder)["digest"] != plain["digest"]


def test_images_in_the_table_count_by_their_bytes(folder: Path) -> None:
    import base64

    found = []
    for colour in ("red", "red", "blue"):
        Image.new("RGB", (40, 40), colour).save(folder / "c.png")
        found.append(of_table(folder, image=base64.b64encode((folder / "c.png").read_bytes()).decode())["digest"])
    assert found[0] == found[1] != found[2]


def test_generated_data_counts_by_its_parameters() -> None:
    one = digest(gl.GlyphVQA("test", size=9))
    assert (one["rows"], one["of"]) == (9, GENERATED)
    assert digest(gl.GlyphVQA("test", size=2000), 9) == one
    others = [{"split": "val"}, {"seed": 1}, {"image_size": 224}, {"families": ["row"]}, {"questions_per_image": 3}]
    found = {digest(gl.GlyphVQA(**{"split": "test", "size": 9, **other}))["digest"] for other in others}
    assert len(found | {one["digest"]}) == 6


def test_broken_rows_and_datasets_of_ones_own_lose_no_results(folder: Path) -> None:
    (folder / "set.json").write_text(json.dumps([{"image": 5}, {"image": ["../../x.png", ""], "conversations": []}]))
    assert digest(VisualCoTBenchmark(str(folder / "set.json"), img_dir=str(folder)))["rows"] == 2
    assert digest([1, 2]) is None


def test_part_of_a_dataset_counts_as_its_rows() -> None:
    whole = gl.GlyphVQA("test", 6)
    part = digest(Some(whole, [1, 2]))
    assert part is not None and part["rows"] == 2 and part["of"] == GENERATED
    assert part != digest(Some(whole, [1, 3]))
    assert digest(Some(whole, range(6))) == digest(whole)
