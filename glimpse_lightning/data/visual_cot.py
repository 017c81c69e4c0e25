"""Visual-CoT in the layout of GlimpsePrune: training files named by its dataset YAML, and the benchmark's files."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from glimpse_lightning.data.digest import of_file
from glimpse_lightning.data.images import MAX_PIXELS, load_image, path_inside
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.data.tables.benchmarks import SHORT
from glimpse_lightning.data.tables.rows import OnError, unique_names
from glimpse_lightning.data.tables.table import read_rows
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError
from glimpse_lightning.runtime.keys import stable_key
from glimpse_lightning.runtime.paths import read_text

BoxType = Literal["xyxy", "xywh", "xyxy_norm1000"]
MAPPERS = ("cot_train", "cot_train_fullmask")
CELL = 28  # side in pixels of the square that becomes one visual token in Qwen2.5-VL
MIN_PIXELS, UPPER_PIXELS = 4 * CELL**2, 16384 * CELL**2
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 24  # of the chat template
BOX_REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."


@dataclass(frozen=True)
class Part:
    """One entry of upstream's dataset YAML.

    Attributes:
        json_path: JSONL file with ``question, answer, image, dataset, width, height, bboxs`` a line.
        sampling_strategy: ``first:N``, ``end:N`` or ``random:N``; default: all.
        sampling_seed: seed of ``random``.
        mapper: ``cot_train``: the boxes are the evidence; ``cot_train_fullmask``: the whole image is.
        bbox_type: format of boxes: ``xyxy`` or ``xywh`` in pixels, ``xyxy_norm1000`` in thousandths.
        additional_mappers: ``norm_bboxes`` divides boxes by the image's size; empty: boxes are relative already.
        prompt: wording of the prompt, with ``{}`` for the question.
        score_funcs: rewards of the part (``llm``, ``precision_match``, ...), which become the samples' family.
        max_input_seq_length: longest prompt, in tokens; default: any.
        max_input_remain_seq_length: longest prompt without the visual tokens outside the evidence; default: any.
    """

    json_path: str
    sampling_strategy: str | None = None
    sampling_seed: int | None = None
    mapper: str = "cot_train"
    bbox_type: BoxType = "xyxy"
    additional_mappers: list[str] = field(default_factory=list)
    prompt: str = "{}"
    score_funcs: list[str] = field(default_factory=list)
    max_input_seq_length: int | None = None
    max_input_remain_seq_length: int | None = None


class VisualCoTTrain(Dataset[Sample]):
    """Training data as upstream's ``dataset_configs/*.yaml`` names it (``gqa_rand``, ``viscot_rand``, ...).

    The same rows are drawn as upstream. Prompt lengths are estimated without a processor: visual tokens from the
    image's size by Qwen2.5-VL's rule, text tokens as the number of characters divided by four, plus 24 of the chat
    template. A prompt whose length is near a limit may therefore be judged differently than upstream.

    Args:
        config: YAML file with a list `datasets` of entries.
        data_dir: folder that `json_path` is relative to.
        img_dir: folder of images; the images of a set lie in `<img_dir>/cot/<dataset>/`.
        on_error: treatment of a row that cannot be used: `raise` stops, `skip` leaves the row out and counts it.
        max_pixels: largest number of pixels of an image; larger images are refused.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> row = {"question": "Which animal?", "answer": "cat", "dataset": "gqa", "image": "1.jpg"}
        >>> _ = Path("gqa.jsonl").write_text(json.dumps(row | {"bboxs": [[0, 0, 9, 9]], "width": 448, "height": 448}))
        >>> _ = Path("gqa.yaml").write_text("datasets: [{json_path: gqa.jsonl, additional_mappers: [norm_bboxes]}]")
        >>> len(gl.VisualCoTTrain("gqa.yaml"))
        1
    """

    def __init__(
        self,
        config: str,
        data_dir: str = ".",
        img_dir: str = "datas",
        on_error: OnError = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path, self.img_dir = Path(config), Path(img_dir)
        self.on_error, self.max_pixels = on_error, max_pixels
        self.rows: list[tuple[Part, str, dict[str, Any]]] = []
        for number, part in enumerate(read_parts(self.path)):
            file = Path(data_dir) / part.json_path
            rows = read_rows(file)
            chosen = draw(len(rows), part.sampling_strategy, part.sampling_seed)
            named = [(part, f"{number}/{file.stem}:{index}", dict(rows[index])) for index in chosen]
            kept = [row for row in named if _damage(*row) or self._fits(*row)]
            if len(kept) < len(named):
                rank_zero_warn(f"{file}: {len(named) - len(kept)} of {len(named)} rows are longer than allowed.")
            self.rows += kept
        if not self.rows:
            raise GlimpseError(f"{config}: expected at least one row, but no part has any that is short enough.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        part, name, row = self.rows[index]
        where = f"{part.json_path}, {name}"
        if problem := _damage(part, name, row):
            raise BadSampleError(f"{where}: {problem}.")
        boxes = part_boxes(part, row, where)
        return Sample(
            id=name,
            key=stable_key(name),
            question=part.prompt.format(row["question"]),
            answers=[str(row["answer"])],
            images=[load_image(self._image_path(row, where), self.max_pixels)],
            boxes=[boxes],
            family="+".join(part.score_funcs),
            where=where,
            files=[f"cot/{row['dataset']}/{row['image']}"],
        )

    def identity(self, index: int) -> list[Any]:
        """The row, its wording, and the identity of its image file."""
        part, name, row = self.rows[index]
        return [name, row, asdict(part), of_file(self.img_dir, f"cot/{row.get('dataset')}/{row.get('image')}")]

    def _image_path(self, row: dict[str, Any], where: str) -> Path:
        return path_inside(self.img_dir, f"cot/{row['dataset']}/{row['image']}", where)

    def _fits(self, part: Part, name: str, row: dict[str, Any]) -> bool:
        if part.max_input_seq_length is None and part.max_input_remain_seq_length is None:
            return True
        rows, columns = token_grid(row["width"], row["height"])
        text = len(part.prompt.format(row["question"])) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
        evidence = np.zeros((rows, columns), dtype=bool)
        for x1, y1, x2, y2 in part_boxes(part, row, name):
            evidence[int(y1 * rows) : int(y2 * rows) + 1, int(x1 * columns) : int(x2 * columns) + 1] = True
        lengths = {"max_input_seq_length": rows * columns, "max_input_remain_seq_length": int(evidence.sum())}
        limits = {limit: getattr(part, limit) for limit in lengths}
        return all(limit is None or lengths[key] + text <= limit for key, limit in limits.items())


def _damage(part: Part, name: str, row: dict[str, Any]) -> str:
    """Message about a fault in a row's keys; empty if there is none."""
    if row.get("answer") is None:
        return "expected an `answer`, but got none"
    for key in ("question", "image", "dataset"):
        if not isinstance(row.get(key), str):
            return f"expected a text `{key}`, but got {row.get(key)!r}"
    for key in ("width", "height"):
        if not isinstance(row.get(key), (int, float)) or not row[key] > 0:
            return f"expected `{key}` in pixels, but got {row.get(key)!r}"
    if not isinstance(row.get("bboxs"), list):
        return f"expected a list of boxes `bboxs`, but got {row.get('bboxs')!r}"
    return ""


def read_parts(path: Path) -> list[Part]:
    """The entries of a dataset YAML.

    Raises:
        GlimpseError: if the file is no such YAML, or an entry has an unknown key, mapper, box type or sampling.
    """
    try:
        config = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise GlimpseError(f"{path}: expected a YAML file with a list `datasets`: {error}") from None
    entries = config.get("datasets") if isinstance(config, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GlimpseError(f"{path}: expected a list `datasets` of mappings.")
    parts = []
    for number, entry in enumerate(entries, start=1):
        given = {key: value for key, value in entry.items() if value is not None}
        if unknown := sorted(set(given) - set(Part.__dataclass_fields__)):
            known = ", ".join(Part.__dataclass_fields__)
            raise GlimpseError(f"{path}, entry {number}: unknown key `{unknown[0]}`; expected only {known}.")
        part = Part(**given)
        for key, value, choices in (
            ("mapper", part.mapper, MAPPERS),
            ("bbox_type", part.bbox_type, BoxType.__args__),  # type: ignore[attr-defined]
            *(("additional_mappers", mapper, ("norm_bboxes",)) for mapper in part.additional_mappers),
        ):
            if value not in choices:
                raise GlimpseError(
                    f"{path}, entry {number}: expected `{key}` out of {', '.join(choices)}, but got {value!r}."
                )
        parts.append(part)
    return parts


def draw(size: int, strategy: str | None, seed: int | None) -> Sequence[int]:
    """Indices that a sampling strategy takes from ``size`` rows; ``random`` draws as ``datasets.Dataset.shuffle(seed)``
    does.

    Raises:
        GlimpseError: for an unknown strategy.
    """
    if not strategy:
        return range(size)
    match = re.fullmatch(r"(first|end|random):([1-9]\d*)", strategy)
    if match is None:
        raise GlimpseError(f"Expected a sampling strategy `first:N`, `end:N` or `random:N`, but got {strategy!r}.")
    count = min(int(match[2]), size)
    if match[1] == "random":
        return np.random.default_rng(seed).permutation(size)[:count].tolist()
    return range(count) if match[1] == "first" else range(size - count, size)


def part_boxes(part: Part, row: dict[str, Any], where: str) -> list[Box]:
    """Evidence of a row, relative to width and height and clipped to the image; boxes outside of it are left out.

    Raises:
        BadSampleError: if a box is not four numbers.
    """
    if part.mapper == "cot_train_fullmask":
        return [(0.0, 0.0, 1.0, 1.0)]
    size = (row["width"], row["height"]) if "norm_bboxes" in part.additional_mappers else (1, 1)
    return [box for raw in row["bboxs"] for box in clipped(raw, part.bbox_type, size, where)]


def clipped(raw: Any, bbox_type: str, size: tuple[float, float], where: str) -> list[Box]:
    """A list with the box in relative numbers, clipped to the image; empty if the box lies outside."""
    try:
        a, b, c, d = map(float, raw)
    except (TypeError, ValueError):
        raise BadSampleError(f"{where}: expected each box to be four numbers, but got {raw!r}.") from None
    width, height = (1000.0, 1000.0) if bbox_type == "xyxy_norm1000" else size
    if bbox_type == "xywh":
        c, d = a + c, b + d
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in (a / width, b / height, c / width, d / height))
    return [(x1, y1, x2, y2)] if x1 < x2 and y1 < y2 else []


def token_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of Qwen2.5-VL's visual tokens for an image: sides rounded to whole cells, then scaled so that
    the area is between 4 and 16,384 cells.
    """
    rows, columns = max(1, round(height / CELL)), max(1, round(width / CELL))
    area = rows * columns * CELL**2
    if area > UPPER_PIXELS:
        scale = (height * width / UPPER_PIXELS) ** 0.5
        return max(1, int(height / scale / CELL)), max(1, int(width / scale / CELL))
    if area < MIN_PIXELS:
        scale = (MIN_PIXELS / (height * width)) ** 0.5
        return -int(-height * scale // CELL), -int(-width * scale // CELL)
    return rows, columns


class VisualCoTBenchmark(Dataset[Sample]):
    """One set of the benchmark: ``viscot_benchmark/benchmark/<set>.json``.

    Args:
        path: the file.
        img_dir: folder that image paths are relative to. A missing image is also searched in a folder `val` below its
            set's folder, as upstream does.
        brief: whether prompts ask for a single word or phrase.
        size: number of questions to use, from the first one on; default: all.
        on_error: treatment of a row that cannot be used: `raise` stops, `skip` leaves the row out and counts it.
        max_pixels: largest number of pixels of an image; larger images are refused.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> turns = [{"value": "Which animal?"}, {"value": "cat"}]
        >>> row = {"image": ["cot/gqa/1.jpg", "cot/gqa/1.jpg###[0, 0, 9, 9]"], "conversations": turns}
        >>> _ = Path("gqa.json").write_text(json.dumps([row]))
        >>> gl.VisualCoTBenchmark("gqa.json").ids
        ['gqa:0']
    """

    def __init__(
        self,
        path: str,
        img_dir: str = "datas",
        brief: bool = False,
        size: int | None = None,
        on_error: OnError = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path, self.img_dir, self.brief = Path(path), Path(img_dir), brief
        self.on_error, self.max_pixels = on_error, max_pixels
        rows = read_rows(self.path, size=size)
        self.rows = [rows[index] for index in range(len(rows))]
        if not self.rows:
            raise GlimpseError(f"{path}: expected at least one question, but it is empty.")
        self.ids = unique_names([f"{self.path.stem}:{row.get('question_id', 0)}" for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row, where = self.rows[index], f"{self.path}, row {index}"
        try:
            (first, marked), turns = row["image"], [turn["value"] for turn in row["conversations"]]
            question = turns[0].replace(BOX_REQUEST, "").strip().replace("<image>\n", "")
            box = ast.literal_eval(marked.split("###")[1])
        except (LookupError, TypeError, ValueError, AttributeError, SyntaxError) as error:
            raise BadSampleError(f"{where}: not a row of the benchmark ({type(error).__name__}: {error}).") from None
        image = load_image(self._image_path(first, where), self.max_pixels)
        return Sample(
            id=self.ids[index],
            key=stable_key(self.ids[index]),
            question=f"{question}\n{SHORT}" if self.brief else question,
            answers=[turns[-1]],
            images=[image],
            boxes=[clipped(box, "xyxy", image.size, where)],
            family=self.path.stem,
            where=where,
            files=[first],
        )

    def identity(self, index: int) -> list[Any]:
        """The row, its wording, and the identity of its image file."""
        row = self.rows[index]
        return [self.ids[index], row, self.brief, of_file(self.img_dir, self._image_path(row["image"][0], ""))]

    def _image_path(self, name: str, where: str) -> Path:
        path = path_inside(self.img_dir, name, where)
        parts = Path(name).parts
        elsewhere = Path(*parts[:2], "val", *parts[2:])
        return path if path.is_file() else path_inside(self.img_dir, str(elsewhere), where)
