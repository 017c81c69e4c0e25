"""The curriculum: lessons in order, each of which draws batches of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from glimpse_lightning.pretraining.architectures import Architecture
from glimpse_lightning.pretraining.glyph_pages import GlyphPages
from glimpse_lightning.pretraining.module import PretrainModule
from glimpse_lightning.pretraining.packing import PackedBatch, pack
from glimpse_lightning.pretraining.pages import TOKEN, Pages
from glimpse_lightning.runtime.errors import GlimpseError

KINDS = ("vision", "ideal", "joint")


@dataclass
class Stage:
    """One lesson of the curriculum.

    Attributes:
        name: name of the stage in logs.
        kind: ``vision``, ``ideal`` or ``joint``.
        steps: optimizer steps; with ``until`` the most of them.
        images: pages in a batch.
        questions: questions about each page, packed in one sequence.
        image_size: width and height in pixels, a multiple of 28; of several, each batch has one by chance. Where all
            pages have one size, M-RoPE puts all tokens of an image at one distance from the question in time, and
            heads that are tuned to this distance find nothing on larger pages.
        lr: peak learning rate, reached after ``warmup`` steps.
        final_lr: learning rate at the last step, approached along a cosine.
        warmup: steps of linear warm-up.
        suffix: shares of prompts that end as in the chat template, at the first and at the last step.
        families: weights of the question families; by default all are equal.
        vision_weight: weight of the vision loss next to the answer loss in a ``joint`` stage.
        see: whether a ``joint`` stage trains the vision tower too.
        hide: share of questions from which a random share of the visual tokens without evidence is hidden; see `pack`.
        pages: source of the pages; by default that of the whole curriculum.
        planned: steps over which rate and suffix change, where that is not ``steps``.
        until: accuracy of families, in [0, 1], at which the stage ends: all of them over a line of the log. When a step
            of reasoning is learned differs by hundreds of steps between processors, as roundings differ.
    """

    name: str
    kind: str
    steps: int
    images: int = 8
    questions: int = 12
    image_size: int | list[int] = 448
    lr: float = 1e-3
    final_lr: float = 1e-4
    warmup: int = 50
    suffix: tuple[float, float] = (1.0, 1.0)
    families: dict[str, float] | None = None
    vision_weight: float = 0.0
    see: bool = True
    hide: float = 0.0
    pages: Pages | None = None
    planned: int | None = None
    until: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GlimpseError(
                f"Expected the kind of stage {self.name!r} to be one of {', '.join(KINDS)}, but got {self.kind!r}."
            )
        if any(size % TOKEN for size in self._sizes):
            raise GlimpseError(
                f"Expected `image_size` of stage {self.name!r} to be a multiple of {TOKEN}, but got {self.image_size}."
            )
        if lost := [family for family in self.until or () if self.families and family not in self.families]:
            raise GlimpseError(
                f"Stage {self.name!r} goes on until {lost[0]!r} is learned, but asks no such question. Add it to its "
                "`families`, or leave it out of `until`."
            )

    @property
    def _sizes(self) -> list[int]:
        return [self.image_size] if isinstance(self.image_size, int) else self.image_size

    def _share(self, step: int) -> float:
        """Share of the way from the first to the last step."""
        return min(1.0, step / max(1, self.planned or self.steps))

    def settings(self, step: int) -> dict[str, Any]:
        """Settings of the training step at ``step`` of this stage."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * self._share(step)))
        lr = warm * (self.final_lr + (self.lr - self.final_lr) * fall)
        part = "decoder" if self.kind == "joint" and not self.see else self.kind
        names: Mapping[str, Any] = {"name": self.name, "kind": self.kind, "part": part}
        return {**names, "lr": lr, "vision_weight": self.vision_weight, "until": self.until or {}}

    def batch(self, pages: Pages, rng: Random, step: int, architecture: Architecture) -> PackedBatch:
        """A fresh batch for ``step`` of this stage, from ``pages`` unless it has its own."""
        size = rng.choice(self._sizes) if len(self._sizes) > 1 else self._sizes[0]
        share = self.suffix[0] + (self.suffix[1] - self.suffix[0]) * self._share(step)
        batch = pack(
            self.pages or pages,
            rng,
            self.images,
            self.questions if self.kind != "vision" else 1,
            size,
            share,
            self.families,
            pixels=self.kind != "ideal",
            hide=self.hide,
            architecture=architecture,
        )
        batch.settings = self.settings(step)
        return batch


class _Lessons(IterableDataset[PackedBatch]):
    """The batches of all stages in order, from ``first`` on.

    Its length is that of all stages, as Lightning goes on counting where a stopped fit ended. Stages that end early
    make it shorter: ``ended`` has the number of batches drawn by then, by the stage's number, and grows on the way.
    """

    def __init__(
        self,
        stages: list[Stage],
        pages: Pages,
        architecture: Architecture,
        seed: str,
        first: int = 0,
        ended: Mapping[int, int] = {},
    ) -> None:
        self.stages, self.pages, self.architecture, self.seed, self.first = stages, pages, architecture, seed, first
        self.ended = ended

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def __iter__(self) -> Iterator[PackedBatch]:
        done = 0
        for number, stage in enumerate(self.stages):
            for step in range(stage.steps):
                if number in self.ended and done >= self.ended[number]:
                    break
                if done >= self.first:
                    batch = stage.batch(self.pages, Random(f"{self.seed}/{done}"), step, self.architecture)
                    batch.settings |= {"number": number, "left": stage.steps - step - 1}
                    yield batch
                done += 1


class PretrainData(lightning.LightningDataModule):
    """The curriculum: batches of all ``stages`` in order, and validation batches of the last stage's kind.

    Args:
        stages: the stages of the curriculum, in order.
        pages: source of the pages; default: GlyphVQA's.
        val_batches: validation batches, drawn from pages that no training batch shows.
        seed: seed of all pages and questions.
    """

    def __init__(self, stages: list[Stage], pages: Pages = GlyphPages(), val_batches: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.stages, self.pages, self.val_batches, self.seed = stages, pages, val_batches, seed

    @property
    def _module(self) -> PretrainModule:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, PretrainModule)
        return module

    @override
    def train_dataloader(self) -> DataLoader[PackedBatch]:
        assert self.trainer is not None
        rank, first = self.trainer.global_rank, self.trainer.global_step
        seed, ended = f"pretrain/{self.seed}/{rank}", self._module.ended
        lessons = _Lessons(self.stages, self.pages, self._module.architecture, seed, first, ended)
        return DataLoader(lessons, batch_size=None, num_workers=0)

    @override
    def val_dataloader(self) -> DataLoader[PackedBatch]:
        last = self.stages[-1]
        lesson = Stage(last.name, last.kind, self.val_batches, last.images, last.questions, last.image_size)
        lessons = _Lessons([lesson], self.pages, self._module.architecture, f"val/{self.seed}")
        return DataLoader(lessons, batch_size=None, num_workers=0)

    @override
    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                setattr(batch, name, value.to(device))
        batch.pixels = {name: value.to(device) for name, value in batch.pixels.items()}
        return batch
