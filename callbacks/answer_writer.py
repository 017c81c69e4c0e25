"""answers.jsonl: the answers of `predict`, written batch by batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from glimpse_lightning.callbacks.results_writer import skipped_samples, write_jsonl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.digest import of_file
from glimpse_lightning.data.reader import AnsweredBefore
from glimpse_lightning.evaluation.remarks import cropped_away, least_seen, partly_seen
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.runtime.appended_lines import AppendedLines
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.run_folder import ANSWERS, RESULTS
from glimpse_lightning.runtime.terminal import counted, show
from glimpse_lightning.runtime.whole_files import remove


class AnswerWriter(Callback, AnsweredBefore):
    """Appends each batch's answers to ``answers.<rank>.jsonl``, which at the end become ``answers.jsonl``.

    A run that was stopped goes on in its folder and answers the remaining questions.
    """

    def __init__(self) -> None:
        self._lines = AppendedLines(Path(), ANSWERS)
        self._before: frozenset[str] = frozenset()
        self._done: set[str] = set()
        self._seen: list[float] = []
        self._cropped = ""
        self._began = time.monotonic()

    @override
    def answered(self, trainer: Trainer) -> set[str]:
        """Ids of the questions that this run has answered before; to be called on all ranks."""
        self._lines = AppendedLines(Path(trainer.default_root_dir), ANSWERS, trainer.global_rank)
        rows = list(self._lines.rows())
        self._before = frozenset(row["id"] for row in rows if _still_of(row))
        if changed := len({row["id"] for row in rows} - self._before):
            rank_zero_info(f"Asked for anew, as their images have changed since: {counted(changed, 'question')}.")
        self._done = set(self._before)
        if self._before:
            rank_zero_info(f"{len(self._before)} questions are answered already.")
        trainer.strategy.barrier("answers are read")  # before any rank goes on and writes more
        return set(self._before)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lines.folder != Path(trainer.default_root_dir):  # some loaders have not called `answered`
            self.answered(trainer)
        self._began = time.monotonic()

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not (isinstance(batch, Batch) and isinstance(outputs, Mapping) and "counts" in outputs):
            return
        rows = []
        for place in outputs["counts"]:
            sample = batch.samples[place]
            if sample.id in self._before:  # answered before; in the loader because it must not be empty
                continue
            if sample.id in self._done:
                raise GlimpseError(
                    f"Two questions are called {sample.id!r}; give each a name of its own, as answers are kept by name."
                )
            self._done.add(sample.id)
            items = [item for item in outputs["kept"] if item["sample"] == place]
            masks = [item["kept"] for item in items]
            self._seen.append(least_seen(items))
            self._cropped = cropped_away(items)
            rows.append(
                {
                    "id": sample.id,
                    "images": sample.files,
                    "question": sample.question,
                    "answer": outputs["answers"][place],
                    "references": sample.answers,
                    "kept": sum(int(mask.sum()) for mask in masks),
                    "total": outputs["total"][place],
                    "cut_off": outputs["cut_off"][place],
                    "image_versions": [of_file(Path(), file)[1:] for file in sample.files],
                }
            )
        self._lines.add(rows)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("answers are written")
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        path = folder / f"{ANSWERS}.jsonl"
        rows = list({row["id"]: row for row in self._lines.rows()}.values())  # the last one, where an image has changed
        write_jsonl(path, rows)
        for part in self._lines.paths:
            remove(part)
        if len(rows) == 1:
            overlays = map(str, (folder / "overlays").glob("*.png"))
            show(rows[0]["answer"], _kept(pl_module, rows[0]), *filter(None, [self._cropped]), *overlays)
        if cut := sum(bool(row.get("cut_off")) for row in rows):  # 0.2.0 began runs without it
            longest = getattr(pl_module, "max_new_tokens", None)
            show(
                f"{cut} of {len(rows)} answers were cut off at {longest} tokens, the longest that "
                f"`--model.max_new_tokens {longest}` lets them be; raise it to read them whole."
            )
        if len(rows) > 1:
            self._say_of_all(rows, folder)
        left_out = len(skipped_samples(trainer, pl_module, "predict"))
        skipped = f"; {counted(left_out, 'row')} skipped, see {RESULTS}" if left_out else ""
        show(f"Written: {path} ({counted(len(rows), 'answer')}{skipped}).")

    def _say_of_all(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Print the share of tokens that the questions kept, the folder of the pictures, and what was never seen."""
        shares = [row["kept"] / row["total"] for row in rows if row["total"]]
        kept = f"Kept {sum(shares) / len(shares):.1%} of the visual tokens (mean over questions). " if shares else ""
        pictures = folder / "overlays"
        show(f"{kept}{len(list(pictures.glob('*.png')))} of the questions are drawn in {pictures}.")
        seconds = time.monotonic() - self._began
        if new := len(rows) - len(self._before):
            show(f"{counted(new, 'question')} answered in {seconds:.0f} s: {new / seconds:.1f} a second.")
        if remark := partly_seen(self._seen):
            show(remark)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the folder of the answers so far."""
        if trainer.predicting and self._done:
            so_far = counted(len(self._done), "answer")
            rank_zero_info(f"{so_far} so far, in {self._lines.folder}; the same command goes on from there.")


def _still_of(row: Mapping[str, Any]) -> bool:
    """Whether the images of an answer are those that it is about, as far as the row tells."""
    found = [of_file(Path(), file)[1:] for file in row.get("images") or ()]
    return row.get("image_versions", found) == found


def _kept(module: Any, row: Mapping[str, Any]) -> str:
    share = f" ({row['kept'] / row['total']:.1%})" if row["total"] else ""
    whole = isinstance(module, VLMModule) and not module.prunes
    unpruned = "; nothing prunes: the recipe names no pruner" if whole else ""
    return f"Kept {row['kept']} of {row['total']} visual tokens{share}{unpruned}."
