"""The resolution cut: never more pixels than asked for, honest counts, and an error where it saves nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from PIL import Image

import glimpse_lightning as gl
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.evaluation.records import Summary, summarise
from glimpse_lightning.model.resolution import ResolutionCut, check_fewer
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.scorers import Random
from glimpse_lightning.training.module import PruningModule

TINY: Any = SimpleNamespace(max_pixels=448 * 448, pixel_multiple=28, name="tiny")


@pytest.mark.parametrize("size", [(448, 448), (300, 900), (1000, 2000), (29, 31)])
@pytest.mark.parametrize("ratio", [0.05, 0.11, 0.33, 0.9])
def test_a_share_of_the_pixels_that_the_processor_takes(size: tuple[int, int], ratio: float) -> None:
    small = ResolutionCut(ratio=ratio).shrunk(Image.new("RGB", size), TINY)
    limit = ratio * min(size[0] * size[1], TINY.max_pixels)
    assert small.width % 28 == small.height % 28 == 0
    assert small.width * small.height <= max(limit, 28 * max(small.size))  # a side is one unit at least
    if min(small.size) > 28:
        assert small.width * small.height <= limit
        assert (small.width + 28) * (small.height + 28) > limit  # no more was cut than rounding asks for


def test_a_limit_leaves_small_images_alone() -> None:
    image = Image.new("RGB", (100, 100))
    assert ResolutionCut(max_pixels=10_000).shrunk(image, TINY) is image
    assert ResolutionCut(max_pixels=9_999).shrunk(image, TINY).size == (84, 84)


def run_test(folder: Path, size: int, **options: Any) -> Summary:
    module = PruningModule(backbone="glimpse-tiny", max_new_tokens=8, baselines=[], **options)
    data = VQAData(test=GlyphVQA("test", size, image_size=448), eval_batch_size=3, num_workers=0)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=folder, **quiet).test(
        module, datamodule=data, verbose=False
    )
    assert module.summary is not None
    return module.summary


def test_tokens_are_counted_against_whole_images(tmp_path: Path) -> None:
    records = run_test(tmp_path, 4, resolution=ResolutionCut(ratio=0.33)).records
    assert {(r.kept, r.total) for r in records} == {(81, 256)}  # 9 x 9 of 16 x 16
    figures = summarise(records)
    for name in ("retention", "entering_retention", "layer_retention", "kv_retention"):
        assert figures[name] == pytest.approx(81 / 256)
    assert 0 < figures["flops_ratio"] < 0.5
    assert figures["kl"] > 0
    assert figures["evidence_recall"] is None
    full = run_test(tmp_path, 4).records
    assert [r.full_prediction for r in records] == [r.prediction for r in full]  # which saw whole images
    assert [r.prediction for r in records] != [r.full_prediction for r in records]


def test_nothing_cut_is_the_full_model(tmp_path: Path) -> None:
    figures = summarise(run_test(tmp_path, 2, resolution=ResolutionCut(ratio=1.0)).records)
    assert (figures["retention"], figures["agreement"], figures["flops_ratio"], figures["kl"]) == (1.0, 1.0, 1.0, 0.0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="exactly one of `ratio` and `max_pixels`"):
        ResolutionCut()
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        ResolutionCut(ratio=0.0)
    with pytest.raises(gl.GlimpseError, match=r"`model.resolution` takes the place"):
        PruningModule(after_layer=1, scorer=Random(), policy=KeepRatio(0.5), resolution=ResolutionCut(ratio=0.5))
    fixed: Any = SimpleNamespace(max_pixels=None, name="llava")
    with pytest.raises(gl.GlimpseError, match="'llava' makes 576 visual tokens of shrunk images, 576 of whole"):
        check_fewer(576, 576, fixed)
    check_fewer(575, 576, fixed)
