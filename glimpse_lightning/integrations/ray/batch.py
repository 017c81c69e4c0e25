"""Questions of a table answered on a Ray cluster: Ray Data's ``map_batches`` with the model in actors."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from glimpse_lightning.data.tables.columns import as_list
from glimpse_lightning.data.tables.rows import ListRows
from glimpse_lightning.integrations.ray.answerer import Answerer
from glimpse_lightning.integrations.ray.claim import claim
from glimpse_lightning.integrations.ray.job import BatchJob
from glimpse_lightning.integrations.ray.parts import Counts, Parts
from glimpse_lightning.integrations.ray.source import find_source, image_folder
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.serving.command import pruner_of

ROWS_OF_A_PART = 256
"""Most rows of a part; answers are saved part by part."""
PARTS_OF_AN_ACTOR = 4
"""Parts of each actor in a small table, so that all actors work to its end."""


@dataclass(frozen=True)
class Summary:
    """Figures of one run of a batch job.

    Attributes:
        counts: rows and visual tokens of this run.
        resumed: rows that were in the output before.
        seconds: time of the run, start of the actors included.
    """

    counts: Counts
    resumed: int
    seconds: float

    def __str__(self) -> str:
        counts, rows = self.counts, self.counts.answered + self.counts.failed
        said = f"{counts.answered} answered, {counts.failed} failed, {self.resumed} resumed."
        if not rows:
            return said
        share = f" ({counts.kept / counts.total:.1%})" if counts.total else ""
        return (
            f"{said} {rows / self.seconds:.1f} rows/s, {counts.kept / self.seconds:,.0f} visual tokens/s kept of "
            f"{counts.total / self.seconds:,.0f}{share}, in {self.seconds:.0f} s with the start of the actors."
        )


@dataclass(frozen=True)
class Workers:
    """Actors of a job.

    Args:
        actors: number of actors, each with a model; by default one for each GPU, or share of one, else 1.
        batch_size: rows that are asked together.
        num_gpus: GPUs of an actor, or a share of one; by default 1 where the cluster has any, else 0.
        address: address of the cluster; by default ``RAY_ADDRESS``, else a cluster on this machine alone.

    Raises:
        GlimpseError: for a number that is not positive.
    """

    actors: int | None = None
    batch_size: int = 16
    num_gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise GlimpseError(f"Expected `{name}` to be at least 1, but got {value}.")
        if self.num_gpus is not None and self.num_gpus < 0:
            raise GlimpseError(f"Expected `num_gpus` to be 0 or more, but got {self.num_gpus}.")

    def on_cluster(self) -> tuple[int, dict[str, Any]]:
        """Number of actors and resources of each, on the cluster, which is started where there is none.

        Raises:
            GlimpseError: where the cluster cannot be reached or is too small.
        """
        _connect(self.address, self.actors or 1)
        there: dict[str, float] = ray.cluster_resources()
        gpus = there.get("GPU", 0.0)
        each = min(1.0, gpus) if self.num_gpus is None else self.num_gpus
        actors = self.actors or (max(1, int(gpus / each)) if each else 1)
        needed, kind = (actors * each, "GPU") if each else (actors + 1, "CPU")
        if needed > there.get(kind, 0.0):
            why = f"{each:g} for each actor" if each else "1 for each actor, 1 for reading and writing"
            raise GlimpseError(
                f"Expected a cluster with {needed:g} {kind}s ({why}), but it has {there.get(kind, 0.0):g}. Lower "
                "`--actors`" + (" or `--num_gpus`." if each else ".")
            )
        return actors, {"num_gpus": each, "num_cpus": 0} if each else {"num_cpus": 1}

    def rows_of_a_part(self, rows: int, actors: int) -> int:
        """Rows of each part of the output: whole batches."""
        wanted = min(ROWS_OF_A_PART, math.ceil(rows / (actors * PARTS_OF_AN_ACTOR)))
        return self.batch_size * math.ceil(wanted / self.batch_size)


def run_batch(
    job: BatchJob, input: str, output: Path, workers: Workers, split: str | None = None, subset: str | None = None
) -> Summary:
    """Answer the rows of a table that are not in the output yet.

    Args:
        job: model, pruner and reading.
        input: file, folder, or name of a dataset on the Hub.
        output: folder of the answers in Parquet, which every machine finds under this name.
        workers: actors of the job.
        split: split of a table with several.
        subset: configuration of a dataset on the Hub.

    Raises:
        GlimpseError: where model, input or cluster cannot be used, ids are not unique, or the output is another job's.
    """
    pruner = pruner_of(job)
    source = find_source(input, split, subset)
    job = replace(job, root=str(Path(job.root or image_folder(input)).resolve()))
    job.questions(ListRows([dict.fromkeys(source.schema.names)]), source.name)  # raises where a column is missing
    columns = job.named_columns(source.schema.names)
    ids, parts = source.ids(str(columns.id)), Parts(output.resolve(), str(columns.id))
    place = str(Path(input).resolve()) if Path(input).exists() else input
    claim(parts.folder, job.identity(pruner) | {"input": place, "split": split, "subset": subset})
    done = parts.ids()
    left, started = sum(name not in done for name in ids), time.perf_counter()
    if left:
        actors, resources = workers.on_cluster()
        answered = (
            _without(source.dataset(), str(columns.id), done)
            .repartition(target_num_rows_per_block=workers.rows_of_a_part(left, actors))
            .map_batches(
                Answerer,
                fn_constructor_args=(job, source.holding_files(as_list(columns.image))),
                batch_size=workers.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors),
                **resources,
            )
        )
        try:
            answered.write_datasink(parts)
        except Exception as error:
            raise _own_error(error) from None
    return Summary(parts.counts, len(ids) - left, time.perf_counter() - started)


def _connect(address: str | None, actors: int) -> None:
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:  # an actor takes a CPU, and so do reading and writing
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, actors + 2),
                include_dashboard=False,
                log_to_driver=False,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GlimpseError(f"Cannot reach a Ray cluster at {address or 'this machine'}: {error}") from error


def _without(dataset: ray.data.Dataset, id: str, done: Set[str]) -> ray.data.Dataset:
    """The rows of a dataset whose ids are not ``done``."""
    if not done:
        return dataset
    names = ray.put(done)  # once for each machine, not with each task

    def rest(batch: pa.Table) -> pa.Table:
        answered = ray.get(names)
        return batch.filter(pa.array([str(name) not in answered for name in batch[id].to_pylist()]))

    return dataset.map_batches(rest, batch_format="pyarrow")


def _own_error(error: BaseException) -> BaseException:
    """The error of ours that Ray's was made of, by its text, which is all that Ray keeps of some; else Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if found := re.search(r"^glimpse_lightning\.\S+Error: (.+)", str(cause), re.MULTILINE | re.DOTALL):
            return GlimpseError(found[1])
        cause = cause.__cause__ or cause.__context__
    return error
