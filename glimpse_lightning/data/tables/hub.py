"""Public benchmarks from the Hugging Face Hub, its local cache, or a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from glimpse_lightning.data.images import MAX_PIXELS
from glimpse_lightning.data.tables.arrow import JoinedRows, cache_folder, hub_rows
from glimpse_lightning.data.tables.benchmarks import find_benchmark
from glimpse_lightning.data.tables.rows import OnError, RowDataset, Rows
from glimpse_lightning.runtime.errors import GlimpseError


class HubVQA(RowDataset):
    """A benchmark by name: ``docvqa_val``, ``textvqa_val``, ``gqa``, ...; all are declared in
    ``data/tables/benchmarks.py``.

    Args:
        name: name of the benchmark.
        folder: a local copy of the dataset's repository, instead of the Hub or the cache.
        split: split of the dataset; default: the one that is scored.
        revision: branch, tag or commit of the dataset; default: the version that the columns were checked against, or
            the newest.
        suffix: text after each question; default: the benchmark's own.
        ocr: whether the words read in the image are shown below each question; needs a benchmark that has them
            (TextVQA).
        size: number of rows to use, from the first one on; default: all.
        streaming: whether to fetch the first `size` rows only, without storing the dataset.
        on_error: treatment of a row that cannot be used: `raise` stops, `skip` leaves the row out and counts it.
        require_answers: whether a row without an answer is an error.
        max_pixels: largest number of pixels of an image; larger images are refused.

    Examples:
        >>> from datasets import Dataset
        >>> from PIL import Image
        >>> row = {"question": "Is there a cat?", "answer": "no", "question_id": "1", "category": "popular"}
        >>> table = Dataset.from_list([row | {"image": Image.new("RGB", (224, 224))}])
        >>> _ = table.to_parquet("POPE/test.parquet")
        >>> gl.HubVQA("pope", folder="POPE")[0].answers
        ['no']
    """

    def __init__(
        self,
        name: str,
        folder: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        suffix: str | None = None,
        ocr: bool = False,
        size: int | None = None,
        streaming: bool = False,
        on_error: OnError = "raise",
        require_answers: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = name
        self.benchmark = benchmark = find_benchmark(name)
        if folder is not None and not Path(folder).is_dir():  # else it would be taken for a repository on the Hub
            raise GlimpseError(
                f"{folder}: no such folder; expected a copy of {benchmark.hub_id}: `hf download {benchmark.hub_id} "
                f"--repo-type dataset --local-dir {folder}`."
            )
        if ocr and benchmark.ocr is None:
            raise GlimpseError(f"Expected `ocr` with a benchmark whose images were read, but {name} has no words.")
        place, revision = folder or benchmark.hub_id, revision or benchmark.revision
        rows: Rows = hub_rows(place, benchmark.config, split or benchmark.split, revision, streaming, size)
        if benchmark.join is not None:
            images = hub_rows(place, benchmark.join.config, benchmark.join.split, revision)
            rows = JoinedRows(rows, images, benchmark.join.key, benchmark.join.image_key)
        super().__init__(
            rows,
            source=f"{place} ({name})",
            columns=replace(benchmark.columns, ocr=benchmark.ocr) if ocr else benchmark.columns,
            wording=benchmark.wording if suffix is None else replace(benchmark.wording, suffix=suffix),
            root=Path(folder) if folder else cache_folder(),
            on_error=on_error,
            require_answers=require_answers,
            max_pixels=max_pixels,
            id_modulo=benchmark.id_modulo,
        )
