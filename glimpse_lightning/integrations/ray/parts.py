"""The output of a batch job: a folder of Parquet files, each written whole.

Nothing here imports torch, which processes that only write would have to load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.datasource import WriteResult
from typing_extensions import override

from glimpse_lightning.runtime.whole_files import replacing


@dataclass
class Counts:
    """Rows and visual tokens of parts.

    Attributes:
        answered: rows with an answer.
        failed: rows with an error.
        kept: visual tokens that decoding saw.
        total: visual tokens before pruning.
    """

    answered: int = 0
    failed: int = 0
    kept: int = 0
    total: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.answered + other.answered, self.failed + other.failed, self.kept + other.kept, self.total + other.total
        )


class Parts(Datasink[Counts]):
    """Files ``part-<digest>.parquet``, named by a digest of the ids in them.

    A part that is written again, as a machine was lost, has its old name and replaces the first one, so no row is in
    the output twice.

    Args:
        folder: folder of the output.
        id: column of the ids.
    """

    def __init__(self, folder: Path, id: str) -> None:
        self.folder, self.id = folder, id
        self.counts = Counts()

    def ids(self) -> set[str]:
        """Names of the rows in the output."""
        files = sorted(self.folder.glob("part-*.parquet"))
        return {str(name) for file in files for name in pq.read_table(file, columns=[self.id])[self.id].to_pylist()}

    @override
    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Counts:
        table = pa.concat_tables([block for block in blocks if len(block)], promote_options="permissive")
        names = table[self.id].to_pylist()
        digest = blake2b(json.dumps(names, default=str).encode(), digest_size=12).hexdigest()
        with replacing(self.folder / f"part-{digest}.parquet") as draft:
            pq.write_table(table, draft)
        failed = len(table) - table["error"].null_count
        kept, total = (pc.sum(table[name]).as_py() or 0 for name in ("kept", "total"))
        return Counts(len(table) - failed, failed, kept, total)

    @override
    def on_write_complete(self, write_result: WriteResult[Counts]) -> None:
        self.counts = sum(write_result.write_returns, Counts())
