"""A few rows of each benchmark, in the column layout that the Hub has, and a folder like a copy of its repository.

Columns as in lmms-eval's task files.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image

from glimpse_lightning.data.tables.benchmarks import BENCHMARKS

PICTURE = Image.new("RGB", (56, 28), "white")
VQAV2_ROW = {
    "question_type": "what", "multiple_choice_answer": "cat",
    "answers": [{"answer": "cat", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
    "image_id": 1, "answer_type": "other", "question_id": 7, "question": "What is it?", "image": PICTURE,
}  # fmt: skip
DOCVQA_ROW = {
    "questionId": "49153", "question": "What is the date?", "question_types": ["form"], "image": PICTURE,
    "docId": 1, "ucsf_document_id": "x", "ucsf_document_page_no": "1", "answers": ["1/8/93", "1/8"],
    "data_split": "val",
}  # fmt: skip
MMBENCH_ROW = {
    "index": 241, "question": "Which one?", "hint": "nan", "answer": "B", "A": "red", "B": "blue", "C": "nan",
    "D": "nan", "category": "attribute", "image": PICTURE, "source": "x", "L2-category": "finegrained",
    "comment": "nan", "split": "dev",
}  # fmt: skip
MMBENCH_ROWS = [MMBENCH_ROW, {**MMBENCH_ROW, "index": 1_000_241, "answer": "A", "A": "blue", "B": "red"},
                {**MMBENCH_ROW, "index": 242, "hint": "It is day."}]  # fmt: skip
POPE_ROWS = [
    {"id": str(i), "question_id": "1", "question": "Is there a dog in the image?", "answer": "yes",
     "image_source": "COCO_1", "image": PICTURE, "category": category}
    for i, category in enumerate(["adversarial", "popular", "random"])
]  # fmt: skip

ROWS: dict[str, list[dict[str, Any]]] = {
    "docvqa_val": [DOCVQA_ROW],
    "infovqa_val": [{"questionId": "1", "question": "How many?", "answers": ["2", "two"], "answer_type": ["x"],
                     "image": PICTURE, "image_url": "u", "operation/reasoning": [], "ocr": "t",
                     "data_split": "val"}],
    "textvqa_val": [{"image_id": "a", "question_id": 34602, "question": "what BRAND is it?", "question_tokens": ["x"],
                     "image": PICTURE, "image_width": 56, "image_height": 28, "flickr_original_url": "u",
                     "answers": ["dakota"] * 10, "image_classes": ["x"], "set_name": "val",
                     "ocr_tokens": ["dakota"]}],
    "vqav2_val": [VQAV2_ROW],
    "vqav2_val_lite": [VQAV2_ROW],
    "vizwiz_vqa_val": [{"question_id": "VizWiz_val_1.jpg", "image": PICTURE, "question": "what IS this?",
                    "answers": ["basil"] * 10, "category": "other"}],
    "gqa": [{"id": "201307251", "imageId": "n1", "question": "Is it overcast?", "answer": "no",
             "fullAnswer": "No, it is clear.", "isBalanced": True, "groups": {"global": "", "local": "x"},
             "entailed": "", "equivalent": "", "types": {"structural": "verify", "semantic": "global",
             "detailed": "x"}, "annotations": {"question": []}, "semantic": [], "semanticStr": ""}],
    "chartqa": [{"type": "human_test", "question": "How many bars?", "answer": "14", "image": PICTURE},
                {"type": "augmented_test", "question": "What share?", "answer": "57%", "image": PICTURE}],
    "pope": POPE_ROWS,
    **{f"pope_{name}": POPE_ROWS[:1] for name in ("adv", "pop", "random")},
    "scienceqa_img": [{"image": PICTURE, "question": "Which is warmer?", "choices": ["ice", "tea"], "answer": 1,
                       "hint": "Ice is cold.", "task": "closed choice", "grade": "grade2", "subject": "x",
                       "topic": "x", "category": "x", "skill": "x", "lecture": "", "solution": ""}],
    "mmbench_en_dev": MMBENCH_ROWS,
    "mmbench_cn_dev": MMBENCH_ROWS,
    "mmbench_en_test": [{**row, "answer": "nan"} for row in MMBENCH_ROWS],
    "mmbench_cn_test": [{**row, "answer": "nan"} for row in MMBENCH_ROWS],
    "mme": [{"question_id": "color/1.png", "image": PICTURE, "question": f"{start} Please answer yes or no.",
             "answer": answer, "category": "color"}
            for start, answer in (("Is it red?", "Yes"), ("Is it blue?", "No"))],
    "seedbench": [{"answer": "C", "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four",
                   "data_id": "1", "data_type": kind, "question": "How many?", "question_id": str(i),
                   "question_type_id": 1, "image": [PICTURE] * frames, "segment": []}
                  for i, (kind, frames) in enumerate((("image", 1), ("video", 2)))],
    "vstar_bench": [{"image": PICTURE, "text": "What color is the glove?\n(A) rubber\n(B) cotton",
                     "label": "A", "category": "direct_attributes", "question_id": "0"}],
}  # fmt: skip


def write_copy(name: str, folder: Path) -> str:
    """Write rows of a benchmark as a copy of its repository on the Hub: Parquet files and a README that names them.

    A repository that holds several benchmarks is written by a call for each of them.
    """
    benchmark = BENCHMARKS[name]
    tables = {(benchmark.config or "default", benchmark.split): ROWS[name]}
    if benchmark.join:
        tables[(benchmark.join.config, benchmark.join.split)] = [{"id": "n1", "image": PICTURE}]
    readme = folder / "README.md"
    configs = yaml.safe_load(readme.read_text().strip("-\n"))["configs"] if readme.is_file() else []
    for (config, split), rows in tables.items():
        path = f"{config}/{split}-00000-of-00001.parquet"
        (folder / config).mkdir(parents=True)
        datasets.Dataset.from_list([_stored(row) for row in rows], features=_features(rows)).to_parquet(folder / path)
        configs.append({"config_name": config, "data_files": [{"split": split, "path": path}]})
    readme.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return str(folder)


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _png(value) if isinstance(value, Image.Image) else
            [_png(one) for one in value] if isinstance(value, list) and isinstance(next(iter(value), 0), Image.Image)
            else value for key, value in row.items()}  # fmt: skip


def _png(image: Image.Image) -> dict[str, Any]:
    data = io.BytesIO()
    image.save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def _features(rows: list[dict[str, Any]]) -> datasets.Features:
    inferred = datasets.Dataset.from_list([_stored(row) for row in rows]).features
    for key, value in rows[0].items():
        if isinstance(value, Image.Image):
            inferred[key] = datasets.Image()
        elif isinstance(value, list) and value and isinstance(value[0], Image.Image):
            inferred[key] = datasets.List(datasets.Image())
    return inferred
