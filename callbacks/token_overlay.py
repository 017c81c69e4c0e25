"""Pictures of kept tokens: these are bright, dropped ones dimmed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from typing_extensions import override

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine.overlay import MIN_WIDTH, draw
from glimpse_lightning.evaluation.records import Record
from glimpse_lightning.evaluation.remarks import cropped_away, kept_in_padding
from glimpse_lightning.runtime.whole_files import replacing

LINE_HEIGHT, FONT_SIZE = 20, 15


def picture(sample: Sample, items: Sequence[Mapping[str, Any]], answers: Mapping[str, str], total: int) -> Image.Image:
    """All images of a sample next to each other, above its question and ``answers``.

    Args:
        sample: the question.
        items: items of its images, as from ``PrefillOutput.items``.
        answers: text by label, the label naming the model that answered.
        total: number of its visual tokens before pruning.
    """
    boxes = sample.boxes or [[] for _ in sample.images]
    panels = [
        draw(image, [item for item in items if item["image"] == number], group)
        for number, (image, group) in enumerate(zip(sample.images, boxes, strict=True))
    ]
    kept = sum(int(item["kept"].sum()) for item in items)
    share = f" ({kept / total:.1%})" if total else ""
    lines = [f"Q: {sample.question}", *(f"{label}: {text}" for label, text in answers.items())]
    padding = kept_in_padding(items)
    beyond = f", {padding} of them in the padding around the image" if padding else ""
    lines.append(f"kept {kept} of {total} tokens{share}{beyond}")
    lines += filter(None, [cropped_away(items)])
    width = max(sum(panel.width for panel in panels), MIN_WIDTH)
    lines = [part for line in lines for part in textwrap.wrap(line, width // 8) or [""]]
    height = max((panel.height for panel in panels), default=0)
    canvas = Image.new("RGB", (width, height + LINE_HEIGHT * len(lines) + 8), "white")
    left = 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(lines):
        pen.text((6, height + 4 + number * LINE_HEIGHT), line, fill="black", font=font)
    return canvas


def _items_by_sample(kept: Sequence[Mapping[str, Any]], sample: int) -> list[Mapping[str, Any]]:
    return [item for item in kept if item["sample"] == sample]


@dataclass(frozen=True)
class Candidate:
    """A question that may be drawn: its sample, its record, and the kept tokens of its images."""

    sample: Sample
    record: Record
    items: Sequence[Mapping[str, Any]]


class Choice:
    """The questions of a test to draw: those whose pruned answer differs from the full one, over all families.

    Questions come one by one, and not more than twice ``most`` of them are held.

    Args:
        most: number of questions to choose.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[bool, list[Candidate]] = {True: [], False: []}  # by whether the answers differ

    def add(self, new: Candidate) -> None:
        """Consider a question; where enough of its kind are held, it may replace one of a larger family."""
        kept = self._kept[new.record.prediction != new.record.full_prediction]
        kept.append(new)
        if len(kept) > self.most:
            sizes = Counter(candidate.record.family for candidate in kept)
            largest = max(sizes.values())
            last = max(index for index, other in enumerate(kept) if sizes[other.record.family] == largest)
            del kept[last]

    def chosen(self) -> list[Candidate]:
        """At most ``most`` questions, those with different answers first."""
        return [*self._kept[True], *self._kept[False]][: self.most]


class TokenOverlay(Callback):
    """Draws kept tokens with question, answers and evidence boxes.

    Validation draws its first samples, for TensorBoard: the same ones each time. Test draws samples whose pruned answer
    differs from the full one, over all families, and fills up with others; they go to TensorBoard and to ``overlays/``.
    Prediction draws its first samples, to ``overlays/``.

    Args:
        samples: number of samples to draw; `predict` has a flag of its own, ``--overlays``.
    """

    def __init__(self, samples: int = 8) -> None:
        self.samples = samples
        self.predicted = samples
        self._drawn = 0
        self._choice = Choice(samples)

    def draw(self, predicted: int) -> None:
        """Draw another number of the questions that `predict` answers; -1 for all."""
        self.predicted = predicted

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = 0

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choice = Choice(self.samples)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = len(list((Path(trainer.default_root_dir) / "overlays").glob("*.png")))  # also before a resume

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        for candidate in _candidates(trainer, outputs, batch) if not trainer.sanity_checking else ():
            if self._drawn < self.samples:
                self._log(trainer, candidate, f"val_kept/{self._drawn}")
                self._drawn += 1

    @override
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        for candidate in _candidates(trainer, outputs, batch):
            self._choice.add(candidate)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number, candidate in enumerate(self._choice.chosen()):
            drawn = self._log(trainer, candidate, f"test_kept/{number}")
            save_picture(drawn, overlay_path(Path(trainer.default_root_dir), candidate.sample))
        self._choice = Choice(self.samples)

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        wanted = self.predicted
        usable = isinstance(batch, Batch) and isinstance(outputs, Mapping) and "kept" in outputs
        for row in outputs["counts"] if usable and trainer.is_global_zero else ():
            if 0 <= wanted <= self._drawn:
                return
            items = _items_by_sample(outputs["kept"], row)
            drawn = picture(batch.samples[row], items, {"answer": outputs["answers"][row]}, outputs["total"][row])
            save_picture(drawn, overlay_path(Path(trainer.default_root_dir), batch.samples[row]))
            self._drawn += 1

    def _log(self, trainer: Trainer, candidate: Candidate, tag: str) -> Image.Image:
        """Draw a question, and show it in TensorBoard."""
        sample, record = candidate.sample, candidate.record
        answers = {"pruned": record.prediction, "full": record.full_prediction}
        if sample.answers:
            answers["true"] = sample.answers[0]
        drawn = picture(sample, candidate.items, answers, record.total)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, np.asarray(drawn), trainer.global_step, dataformats="HWC")
        return drawn


def _candidates(trainer: Trainer, outputs: Any, batch: Any) -> Iterator[Candidate]:
    """The questions of an evaluated batch that count, on the first rank."""
    usable = isinstance(batch, Batch) and isinstance(outputs, Mapping) and "records" in outputs
    if not usable or not trainer.is_global_zero:
        return
    records = {record.id: record for record in outputs["records"]}
    for row, sample in enumerate(batch.samples):
        if sample.id in records:
            yield Candidate(sample, records[sample.id], _items_by_sample(outputs["kept"], row))


def overlay_path(run: Path, sample: Sample) -> Path:
    """Where the picture of a sample is kept in a run's folder; the sample's key keeps names apart."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in str(sample.id))[-80:]
    return run / "overlays" / f"{name}-{sample.key % 16**6:06x}.png"


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as draft:
        image.save(draft, format="PNG")
