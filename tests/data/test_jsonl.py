from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.visual_cot import draw
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError

GOOD = {"question": "what is it", "answer": "a cat", "image": "cat.png"}


@pytest.fixture
def write(tmp_path: Path):
    Image.new("RGB", (40, 20)).save(tmp_path / "cat.png")

    def write(*lines: Any) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return str(path)

    return write


def test_reads_all_keys(write) -> None:
    several = {
        "question": "which",
        "answers": ["left", "the left one"],
        "images": ["cat.png", "cat.png"],
        "boxes": [[[0, 0, 0.5, 1]], []],
        "family": "compare",
        "id": "x7",
    }
    data = JSONL(write(GOOD, "", several))
    first, second = data[0], data[1]
    assert (first.question, first.answers, first.boxes, first.family) == ("what is it", ["a cat"], None, "")
    assert first.id == "data.jsonl:1"
    assert (second.id, second.family, second.answers) == ("x7", "compare", ["left", "the left one"])
    assert second.boxes == [[(0, 0, 0.5, 1)], []]
    assert len(second.images) == 2
    assert 0 <= first.key < 2**63
    assert first.key != second.key


def test_lines_about_one_image_share_it(write) -> None:
    data = JSONL(write(GOOD, GOOD))
    assert data[0].images[0] is data[1].images[0]


def test_drawn_lines_are_those_of_the_visual_cot_files(write) -> None:
    path = write(*({**GOOD, "question": f"q{i}"} for i in range(20)))
    drawn = [row.question for row in JSONL(path, draw=7).rows]
    assert drawn == [f"q{i}" for i in draw(20, "random:7", 42)]
    assert [row.question for row in JSONL(path, draw=7, draw_seed=1).rows] != drawn
    assert len(JSONL(path, draw=99)) == 20
    with pytest.raises(GlimpseError, match="`draw` to be at least 1"):
        JSONL(path, draw=0)


def test_line_separators_inside_strings_are_legal(write) -> None:
    assert JSONL(write('{"question": "a\u2028b", "answer": "1", "image": "cat.png"}'))[0].question == "a\u2028b"


def test_boxes_in_pixels_are_normalised(write) -> None:
    data = JSONL(write({**GOOD, "boxes": [[10, 5, 20, 20]]}), box_format="pixels")
    assert data[0].boxes == [[(0.25, 0.25, 0.5, 1.0)]]


BAD: list[tuple[Any, str]] = [
    ('{"question": ', "broken JSON"),
    ("[1, 2]", "expected a JSON object"),
    ({**GOOD, "qustion": 1}, "unknown key 'qustion'"),
    ({**GOOD, "question": "  "}, "`question`"),
    ({**GOOD, "answer": ""}, "`answer`"),
    ({"question": "q", "image": "cat.png"}, "`answer`"),
    ({**GOOD, "answers": []}, "both"),
    ({**GOOD, "answer": None, "answers": ["a"]}, "both"),
    ({"question": "q", "answers": [], "image": "cat.png"}, "`answers`"),
    ({"question": "q", "answer": "a"}, "`image`"),
    ({**GOOD, "image": "dog.png"}, "no such image"),
    ({**GOOD, "image": "../cat.png"}, "leaves the folder"),
    ({**GOOD, "image": "/etc/passwd"}, "leaves the folder"),
    ({**GOOD, "boxes": [[0, 0, 1.5, 1]]}, "outside the image"),
    ({**GOOD, "boxes": [[0, 0, 30, 10]]}, "box_format: pixels"),
    ({**GOOD, "boxes": [[0.5, 0, 0.5, 1]]}, "x1 < x2"),
    ({**GOOD, "boxes": [[0, 0, 1]]}, "four numbers"),
    ({**GOOD, "boxes": 3}, "list of boxes"),
    ({"question": "q", "answer": "a", "images": ["cat.png"], "boxes": [[], []]}, "one list for each"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_by_file_and_line(write, line: Any, message: str) -> None:
    path = write(GOOD, line)
    with pytest.raises(BadSampleError) as error:
        JSONL(path)
    assert message in str(error.value)
    assert f"{path}, line 2" in str(error.value)


def test_bad_lines_are_skipped_and_counted_when_asked(write) -> None:
    with pytest.warns(UserWarning, match="skipped 2 bad lines"):
        data = JSONL(write(GOOD, "nonsense", {**GOOD, "question": ""}), on_error="skip")
    assert len(data) == 1
    assert len(data.skipped) == 2
    assert "line 2" in data.skipped[0]


def test_pixel_boxes_outside_the_image_are_found_on_reading(write) -> None:
    data = JSONL(write({**GOOD, "boxes": [[0, 0, 41, 10]]}), box_format="pixels")
    with pytest.raises(BadSampleError, match=r"line 1.*outside"):
        data[0]


def test_a_damaged_image_is_named_with_its_line(write, tmp_path: Path) -> None:
    data = JSONL(write(GOOD))
    (tmp_path / "cat.png").write_bytes((tmp_path / "cat.png").read_bytes()[:40])
    with pytest.raises(BadSampleError, match=r"line 1: .*cat\.png"):
        data[0]


def test_duplicate_ids_are_refused(write) -> None:
    with pytest.raises(BadSampleError, match="is taken"):
        JSONL(write({**GOOD, "id": "a"}, {**GOOD, "id": "a"}))


def test_nothing_usable_is_an_error(write, tmp_path: Path) -> None:
    with pytest.raises(GlimpseError, match="empty file"):
        JSONL(write(""))
    with pytest.raises(GlimpseError, match="no such file"):
        JSONL(str(tmp_path / "none.jsonl"))


def test_answers_may_be_missing_for_prediction(write) -> None:
    assert JSONL(write({"question": "q", "image": "cat.png"}), require_answers=False)[0].answers == []
