from __future__ import annotations

import base64
import csv
import io
import json
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from glimpse_lightning.cli.recipe_files import read_yaml
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.tables.columns import Columns, Wording
from glimpse_lightning.data.tables.table import Table
from glimpse_lightning.evaluation.predictions import read_predictions
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError

COLUMNS = Columns(question="ask", answers="say", image="file", id="nr", family="kind", boxes="where")
ROWS = [
    {"nr": 1, "ask": "what is it", "say": "007", "file": "a.png", "kind": "x", "where": [[0.0, 0.0, 0.5, 1.0]]},
    {"nr": 2, "ask": "and this", "say": ["a", "b"], "file": "a.png", "kind": "", "where": None},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    return tmp_path


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    lists = [{**row, "say": row["say"] if isinstance(row["say"], list) else [row["say"]]} for row in ROWS]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            for row in ROWS:
                cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
                writer.writerow(cells)
    elif kind == "parquet":
        datasets.Dataset.from_list(lists).to_parquet(path)
    else:
        path = folder
        table = datasets.Dataset.from_list(lists)
        if kind == "splits":
            datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(path)
        else:
            table.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "saved"])
def test_any_table(folder: Path, kind: str) -> None:
    data = Table(str(_write(folder, kind)), COLUMNS, Wording(suffix="?"), root=str(folder))
    first, second = data[0], data[1]
    assert (first.id, first.question, first.answers, first.family) == ("1", "what is it?", ["007"], "x")
    assert (second.id, second.answers, second.family, second.boxes) == ("2", ["a", "b"], "", None)
    assert first.boxes == [[(0.0, 0.0, 0.5, 1.0)]]
    assert first.images[0].size == (40, 20)


def test_splits_and_size(folder: Path) -> None:
    path = str(_write(folder, "splits"))
    assert len(Table(path, COLUMNS, split="train")) == 2
    assert Table(path, COLUMNS, split="test")[0].id == "2"
    assert len(Table(path, COLUMNS, split="train", size=1)) == 1
    with pytest.raises(GlimpseError, match=r"one of train, test, but got None"):
        Table(path, COLUMNS)


def test_a_folder_of_images(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "question": "q", "answers": "a"}) + "\n")
    sample = Table(str(folder))[0]
    assert (sample.question, sample.answers, sample.images[0].size) == ("q", ["a"], (40, 20))


def test_a_folder_of_images_without_questions_is_told_what_it_lacks(folder: Path) -> None:
    with pytest.raises(GlimpseError, match=r"metadata\.csv .*`predict --image"):
        Table(str(folder))


def test_boxes_in_pixels_and_several_images(folder: Path) -> None:
    path = folder / "x.jsonl"
    row = {"question": "q", "answers": "a", "image": ["a.png", "a.png"], "boxes": [[[0, 0, 20, 10]], []]}
    path.write_text(json.dumps(row))
    assert Table(str(path), Columns(boxes="boxes"), box_format="pixels")[0].boxes == [[(0, 0, 0.5, 0.5)], []]
    row = {"question": "q", "answers": "a", "left": "a.png", "right": "a.png"}
    path.write_text(json.dumps(row))
    assert len(Table(str(path), Columns(image=["left", "right"]))[0].images) == 2


def test_mistakes_are_named(folder: Path) -> None:
    path = str(_write(folder, "csv"))
    with pytest.raises(
        GlimpseError, match=r"column `question`, but there are only nr, ask, say.*columns\.question NAME`"
    ):
        Table(path)
    with pytest.raises(GlimpseError, match=r"Did you mean file\?"):
        Table(path, Columns(question="ask", answers="say", image="fil"))
    with pytest.raises(GlimpseError, match="no such file"):
        Table(str(folder / "none.csv"))
    with pytest.raises(GlimpseError, match=r"ends in '\.png'"):
        Table(str(folder / "a.png"))
    (folder / "bad.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(GlimpseError, match="line 2: broken JSON"):
        Table(str(folder / "bad.jsonl"))
    (folder / "bad.parquet").write_text("no")
    with pytest.raises(GlimpseError, match=r"bad\.parquet"):
        Table(str(folder / "bad.parquet"))
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(GlimpseError, match="at least one row"):
        Table(str(folder / "empty.jsonl"))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "folder"])
def test_paths_stay_in_the_root(folder: Path, name: str) -> None:
    inner = folder / "inner"
    (inner / "folder").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "secret.png")
    (inner / "link.png").symlink_to(folder / "secret.png")
    path = inner / "x.jsonl"
    path.write_text(json.dumps({"question": "q", "answers": "a", "image": name}))
    with pytest.raises(BadSampleError, match=r"x\.jsonl, line 1: .*(leaves the folder|not a readable image)"):
        Table(str(path))[0]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"answers": None}, "expected an answer"),
        ({"question": 3}, "expected a text in column `question`"),
        ({"image": "none.png"}, "no such image"),
        ({"image": 3}, "expected an image or its path"),
        ({"image": "text.png"}, "not a readable image"),
        ({"boxes": [1, 2, 3]}, "list of boxes"),
        ({"boxes": [[1, 2, 3]]}, "four numbers"),
        ({"boxes": [[0, 0, 5, 1]]}, "outside the image"),
        ({"boxes": [[[0, 0, 1, 1]], []]}, "one list of boxes"),
        ({"answers": [{"text": "a"}]}, "KeyError"),
    ],
)
def test_bad_cells_are_reported_by_workers_in_words(folder: Path, cell: dict, message: str) -> None:
    (folder / "text.png").write_text("hello")
    path = folder / "x.jsonl"
    good = {"question": "q", "answers": "a", "image": "a.png", "boxes": None}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | cell)))
    columns = Columns(boxes="boxes")
    batches = list(VQAData(val=Table(str(path), columns), eval_batch_size=1, num_workers=1).val_dataloader())
    assert batches[0].error is None
    assert batches[1].error is not None
    assert message in batches[1].error
    assert "line 2" in batches[1].error
    skipping = VQAData(val=Table(str(path), columns, on_error="skip"), eval_batch_size=2, num_workers=0)
    (batch,) = skipping.val_dataloader()
    assert (batch.weight, len(batch.skipped)) == ([1.0, 0.0], 1)


def test_unforeseen_cells_are_skipped_as_well(folder: Path) -> None:
    path = folder / "x.jsonl"
    path.write_text(json.dumps({"question": "q", "answers": ["a", "b"], "image": "a.png", "options": ["x"]}))
    with pytest.raises(BadSampleError, match="line 1"):
        Table(str(path), Columns(options="options"))[0]


def picture(folder: Path) -> bytes:
    Image.new("RGB", (56, 56), "red").save(folder / "a.png")
    return (folder / "a.png").read_bytes()


def test_a_tsv_means_its_quotes_and_may_hold_images(tmp_path: Path) -> None:
    """As VLMEvalKit and most exports write it: no quoting, images in base64, cells of any length."""
    data = picture(tmp_path)
    noise = io.BytesIO()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(noise, "PNG")  # 360,000 letters
    cells = [base64.b64encode(data).decode(), "data:image/png;base64," + base64.b64encode(data).decode(), "a.png"]
    cells.append(base64.b64encode(noise.getvalue()).decode())
    rows = "".join(f'"STOP" is "where"?\tit\'s "here"\t{cell}\n' for cell in cells)
    (tmp_path / "t.tsv").write_text("question\tanswers\timage\n" + rows)
    table = Table(str(tmp_path / "t.tsv"))
    assert [table[i].images[0].size for i in range(4)] == [(56, 56)] * 3 + [(300, 300)]
    assert table[0].question == '"STOP" is "where"?' and table[0].answers == ['it\'s "here"']
    (tmp_path / "b.csv").write_text(f"question,answers,image\nq,a,{'QUFB' * 30}\n")
    with pytest.raises(BadSampleError, match="line 2: its image: not a readable image"):
        Table(str(tmp_path / "b.csv"))[0]


def test_a_broken_line_of_a_csv_has_a_number_and_may_be_skipped(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "t.csv").write_text('question,answers,image\nq,a,a.png\n"q"x,a,a.png\nr,a,a.png\n')
    with pytest.raises(GlimpseError, match=r"t\.csv, line 3: .*; mend the line"):
        Table(str(tmp_path / "t.csv"))
    table = Table(str(tmp_path / "t.csv"), on_error="skip")
    assert len(table.skipped) == 1 and "line 3" in table.skipped[0]
    assert table[0].question == "q"


def test_rows_are_called_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    """Also after blank lines, cells of two lines and rows that were left out; counted from 1, as editors do."""
    picture(tmp_path)
    lines = ["question,answers,image", '"what', 'is it",cat,a.png', "", "why,,a.png", '"q"x,a,a.png', "who,,a.png"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    (tmp_path / "t.tsv").write_text("question\tanswers\timage\nq\ta\ta.png\n\nwhy\t\ta.png\n")
    (tmp_path / "t.jsonl").write_text('\n{"question": "q", "answers": "a", "image": "a.png"}\n\n{"question": "why"}\n')
    csv, tsv, jsonl = (Table(str(tmp_path / name), on_error="skip") for name in ("t.csv", "t.tsv", "t.jsonl"))
    assert (csv[0].where, tsv[0].where, jsonl[0].where) == tuple(
        f"{tmp_path / name}, line {line}" for name, line in (("t.csv", 2), ("t.tsv", 2), ("t.jsonl", 2))
    )
    for table, index, line in ((csv, 1, 5), (csv, 2, 7), (tsv, 1, 4), (jsonl, 1, 4)):
        with pytest.raises(BadSampleError, match=f", line {line}: expected an"):
            table[index]


@pytest.mark.parametrize("name", ["T.CSV", "t.Csv"])
def test_endings_are_read_in_any_case(name: str, tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / name).write_text("question,answers,image\nq,a,a.png\n")
    assert Table(str(tmp_path / name))[0].question == "q"


def test_a_sample_names_the_files_of_its_images(tmp_path: Path) -> None:
    """As the data name them; images that are in the table have no name, unless `datasets` keeps one."""
    data = base64.b64encode(picture(tmp_path)).decode()
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "b.png")
    rows = [{"question": "q", "answers": "a", "image": image} for image in (["a.png", "in/b.png"], data)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.files for sample in (Table(str(tmp_path / "t.jsonl"))[0], Table(str(tmp_path / "t.jsonl"))[1])] == [
        ["a.png", "in/b.png"], [""],
    ]  # fmt: skip
    (tmp_path / "u.jsonl").write_text('{"question": "q", "answer": "a", "images": ["in/b.png", "./a.png"]}')
    assert JSONL(str(tmp_path / "u.jsonl"))[0].files == ["in/b.png", "./a.png"]
    (tmp_path / "in" / "metadata.csv").write_text("file_name,question,answers\nb.png,q,a\n")
    (file,) = Table(str(tmp_path / "in"))[0].files
    assert Path(file).name == "b.png"


def test_a_row_without_its_image_is_no_text_question(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "t.csv").write_text("question,answers,image\nwhat is it,cat,a.png\nwhat is it,cat\n")
    with pytest.raises(BadSampleError, match=r"line 3: expected an image in column `image`.*require_images: false"):
        Table(str(tmp_path / "t.csv"))[1]
    assert Table(str(tmp_path / "t.csv"), require_images=False)[1].images == []


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "c.json", "d.csv", "e.tsv", "f.yaml", "g.jsonl"])
def test_a_byte_order_mark_is_no_content(name: str, tmp_path: Path) -> None:
    picture(tmp_path)
    row = {"question": "q", "answers": "a", "image": "a.png"}
    text = {
        "a.jsonl": json.dumps({"question": "q", "answer": "a", "image": "a.png"}), "b.jsonl": json.dumps(row),
        "c.json": json.dumps([row]), "d.csv": "question,answers,image\nq,a,a.png\n",
        "e.tsv": "question\tanswers\timage\nq\ta\ta.png\n", "f.yaml": "model: {}\n",
        "g.jsonl": json.dumps({"task": "t", "id": "1", "question": "q", "references": ["a"], "prediction": "a"}),
    }[name]  # fmt: skip
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    if name == "f.yaml":
        assert read_yaml(path) == {"model": {}}
    elif name == "g.jsonl":
        assert read_predictions(path)[0].task == "t"
    else:
        kind = JSONL if name == "a.jsonl" else Table
        assert kind(str(path))[0].question == "q"


@pytest.mark.parametrize("name", ["a\0.png", "A" * 5000, "x/../../a.png"])
def test_a_path_that_is_none_is_a_bad_line(name: str, tmp_path: Path) -> None:
    picture(tmp_path)
    rows = [{"question": "q", "answer": "a", "image": image} for image in ("a.png", name)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadSampleError, match=r"t\.jsonl, line 2: "):
        JSONL(str(tmp_path / "t.jsonl"))
    assert len(JSONL(str(tmp_path / "t.jsonl"), on_error="skip")) == 1


QUESTIONS = {
    "a.jsonl": '{"question": "q", "answers": "a", "image": "a.png"}\n',
    "b.jsonl": '{"question": "r", "answers": "b", "image": "a.png"}\n',
    "q.csv": "question,answers,image\nq,a,a.png\n",
    "photos/q.csv": "question,answers,image\nq,a,a.png\n",
    "metadata.csv": "file_name,question,answers\na.png,q,a\n",
    "metadata.jsonl": '{"file_name": "a.png", "question": "q", "answers": "a"}\n',
    "a.parquet": "", "b.parquet": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jsonl", "b.jsonl", "q.csv"], ["several files of questions: a.jsonl, b.jsonl, q.csv.", "as {}/a.jsonl"]),
        (["a.jsonl", "b.jsonl"], ["several files of questions: a.jsonl, b.jsonl."]),
        (["q.csv", "photos/q.csv"], ["several files of questions: photos/q.csv, q.csv."]),
        (["a.parquet", "b.parquet"], ["several files of questions: a.parquet, b.parquet."]),
        (["a.parquet", "q.csv"], ["several files of questions: a.parquet, q.csv."]),
        (
            ["photos/a.png", "photos/b.png", "q.csv"],
            ["images", "seem to be in q.csv", "in place of the folder: {}/q.csv"],
        ),
        (["a.png", "metadata.csv", "q.csv"], ["in its metadata.csv alone, but there are also q.csv", "({}/q.csv)"]),
        (["a.png", "metadata.csv", "metadata.jsonl"], ["one metadata file", "metadata.csv, metadata.jsonl"]),
        (["photos/a.png", "photos/b.png"], ["without questions", "`predict --image {}"]),
    ],
)
def test_a_folder_whose_questions_are_not_clear_is_refused(tmp_path: Path, names: list[str], words: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (9, 9)).save(tmp_path / name)
        elif name.endswith(".parquet"):
            datasets.Dataset.from_list([{"question": "q", "answers": "a"}]).to_parquet(tmp_path / name)
        else:
            (tmp_path / name).write_text(QUESTIONS[name])
    with pytest.raises(GlimpseError) as found:
        Table(str(tmp_path))
    for word in words:
        assert word.format(tmp_path) in str(found.value)


def test_folders_that_are_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards in Parquet, next to images; splits of them; a single file; without talk of downloads."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    table = datasets.Dataset.from_list([{"question": "q", "answers": "a", "image": "a.png"}] * 2)
    for shard in range(2):
        table.to_parquet(tmp_path / f"data-0000{shard}-of-00002.parquet")
    capsys.readouterr()
    data = Table(str(tmp_path))
    assert (len(data), data[3].images[0].size) == (4, (9, 9))
    (tmp_path / "split").mkdir()
    table.to_parquet(tmp_path / "split" / "train-0.parquet")
    table.select([0]).to_parquet(tmp_path / "split" / "test-0.parquet")
    capsys.readouterr()
    assert len(Table(str(tmp_path / "split"), split="test")) == 1
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "q.csv").write_text(QUESTIONS["q.csv"])
    assert len(Table(str(tmp_path / "one"), root=str(tmp_path))) == 1
    assert "".join(capsys.readouterr()) == ""


def test_the_readme_of_a_repository_says_which_files_it_has(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\nA page.\n")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(QUESTIONS[name])
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    data = Table(str(tmp_path))
    assert [data[index].question for index in range(len(data))] == ["r"]


def test_rows_of_metadata_are_called_by_file_and_line(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "b.png")
    text = 'file_name,question,answers\na.png,"q\nq",007\nin/b.png,q,b\nc.png,q,c\n'
    (tmp_path / "metadata.csv").write_text(text)
    data = Table(str(tmp_path))
    assert (data[0].answers, data[1].files, data[1].images[0].size) == (["007"], ["in/b.png"], (9, 9))
    with pytest.raises(BadSampleError, match=rf"^{tmp_path}/metadata\.csv, line 5: no such image: .*c\.png"):
        data[2]
    (tmp_path / "metadata.csv").rename(tmp_path / "in" / "metadata.csv")
    (tmp_path / "in" / "metadata.csv").write_text("left_file_name,file_name,question,answers\nb.png,../a.png,q,a\n")
    sample = Table(str(tmp_path), Columns(image=["left", "image"]))[0]
    assert [image.size for image in sample.images] == [(9, 9), Image.open(tmp_path / "a.png").size]


def test_metadata_has_to_name_the_images(tmp_path: Path) -> None:
    picture(tmp_path)
    (tmp_path / "metadata.csv").write_text("image,question,answers\na.png,q,a\n")
    with pytest.raises(GlimpseError, match=r"metadata\.csv: expected a column `file_name` .* only image, question"):
        Table(str(tmp_path))
