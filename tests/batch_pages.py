"""Tables of GlyphVQA pages, and the answers that a model gives to each alone."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import glimpse_lightning as gl
from glimpse_lightning.integrations.ray.job import BatchJob

JOB = BatchJob("glimpse-tiny", recipe="methods/fastv", retention=0.25, max_new_tokens=8)


@cache
def pages(number: int) -> list[gl.Sample]:
    data = gl.GlyphVQA("test", number)
    return [data[index] for index in range(number)]


def png(sample: gl.Sample) -> bytes:
    content = io.BytesIO()
    sample.images[0].save(content, "PNG")
    return content.getvalue()


def rows(number: int) -> list[dict[str, Any]]:
    """Rows as `datasets` stores them, images and all."""
    return [
        {
            "id": f"q{place}",
            "question": page.question,
            "image": {"bytes": png(page), "path": None},
            "answer": page.answers[0],
        }
        for place, page in enumerate(pages(number))
    ]


def write_parquet(path: Path, table: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), path, row_group_size=8)
    return path


def write_jsonl(folder: Path, number: int) -> Path:
    """Lines with paths of images next to the file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, page in enumerate(pages(number)):
        (folder / f"{place}.png").write_bytes(png(page))
        lines.append({"id": place, "question": page.question, "image": f"{place}.png"})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@cache
def alone(number: int) -> list[tuple[str, int, int]]:
    """Each page's answer, kept and total tokens, by `PrunedVLM.generate` with one question at a time."""
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.25), early_kv="keep")
    backbone = gl.load_backbone("glimpse-tiny")
    model = gl.PrunedVLM(backbone, gl.Pruner([stage])).eval()
    found = []
    for page in pages(number):
        batch = backbone.collate([gl.Sample(question=page.question, images=page.images)])
        out = model.prefill(**batch.inputs)
        text = backbone.decode(model.generate(**batch.inputs, max_new_tokens=8, do_sample=False))[0]
        found.append((text, int(out.kept().sum()), len(out.kept())))
    return found
