"""Models over one backbone that are asked the same questions share the work that does not depend on the pruner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.evaluation.records import Record
from glimpse_lightning.evaluation.shared_questions import SharedQuestions
from glimpse_lightning.model.storage import save_pruner
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import Random, VisionRank
from glimpse_lightning.training.module import PruningModule


def records_of(module: PruningModule, root: Path, shared: SharedQuestions | None = None) -> list[Record]:
    data = VQAData(test=GlyphVQA("test", 5, image_size=224), eval_batch_size=2, num_workers=0)
    if shared is not None:
        assert isinstance(module.backbone, Backbone)
        module.share(module.backbone, shared)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    runner = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=root, **quiet)
    runner.test(module, datamodule=data, verbose=False)
    assert module.summary is not None
    return module.summary.records


def modules(backbone: Backbone | str) -> list[PruningModule]:
    kwargs: dict[str, Any] = {"backbone": backbone, "max_new_tokens": 3, "baselines": []}
    return [
        PruningModule(after_layer=1, scorer=Random(), policy=KeepRatio(0.2), **kwargs),
        PruningModule(after_layer=-1, scorer=VisionRank(-1), policy=KeepRatio(0.4), **kwargs),
        PruningModule(**kwargs),
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[list[Record]]:
    return [records_of(module, tmp_path_factory.mktemp("alone")) for module in modules("glimpse-tiny")]


@pytest.mark.parametrize("limit", [1e9, 1e5])
def test_shared_questions_give_the_same_answers(
    limit: float, alone: list[list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("glimpse-tiny")
    shared = SharedQuestions(taps=(VisionRank(-1).requires.vision_layers), limit=limit)
    embedded: list[int] = []
    embed = backbone.embed
    monkeypatch.setattr(backbone, "embed", lambda inputs, taps=(): embedded.append(1) or embed(inputs, taps))
    fits = limit > 1e6
    for number, (module, wanted) in enumerate(zip(modules(backbone), alone, strict=True)):
        assert records_of(module, tmp_path, shared) == wanted
        assert shared.complete == fits
        assert len(embedded) == (3 if fits else 3 * (number + 1))
    assert len(shared.answers) == 5
    last = alone[-1][0]
    assert (last.kl, last.flops, last.entering, last.layer_mean) == (0.0, 1.0, last.total, last.total)


def test_the_full_model_answers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, shared = load_backbone("glimpse-tiny"), SharedQuestions(taps=VisionRank(-1).requires.vision_layers)
    first, *others = modules(backbone)
    records_of(first, tmp_path, shared)
    for module in others:
        module.share(backbone, shared)
        module.configure_model()
        monkeypatch.setattr(module.evaluator.full, "generate", lambda **kwargs: pytest.fail("answered again"))
        records_of(module, tmp_path, shared)


def test_a_model_that_fails_leaves_nothing_half_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedQuestions()
    first, second = modules(load_backbone("glimpse-tiny"))[::2]
    monkeypatch.setattr(first, "on_test_epoch_end", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records_of(first, tmp_path, shared)
    assert not shared.complete
    assert len(records_of(second, tmp_path, shared)) == 5
    assert sum(len(batch.samples) for batch in shared.batches) == 5


def test_a_saved_pruner_under_another_policy(tmp_path: Path) -> None:
    backbone = load_backbone("glimpse-tiny")
    pruner = Pruner([PruneStage(1, Random(), KeepRatio(0.5))])
    pruner.build(backbone.facts)
    save_pruner(pruner, tmp_path / "one")
    module = PruningModule(pruner=str(tmp_path / "one"), policy=KeepRatio(0.2), max_new_tokens=2, baselines=[])
    assert {record.kept for record in records_of(module, tmp_path)} == {12}  # of 64
    two = Pruner([PruneStage(layer, Random(), KeepRatio(0.5)) for layer in (0, 1)])
    two.build(backbone.facts)
    save_pruner(two, tmp_path / "two")
    with pytest.raises(GlimpseError, match=r"one stage where `model.policy`"):
        PruningModule(pruner=str(tmp_path / "two"), policy=KeepRatio(0.2)).configure_model()


def test_baselines_are_asked_what_the_first_pass_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question goes through the vision tower once where they fit into memory, twice elsewhere; figures agree."""
    found = []
    for most in (1e9, 1e5, 0.0):
        backbone = load_backbone("glimpse-tiny")
        module = modules(backbone)[0]
        module.baselines, module.remembered.limit = [Random(), VisionRank(-1)], most
        embedded: list[int] = []

        def embed(*args: Any, run: Any = backbone.embed, count: list[int] = embedded) -> Any:
            count.append(1)
            return run(*args)

        monkeypatch.setattr(backbone, "embed", embed)
        records_of(module, tmp_path)
        assert len(embedded) == (3 if most > 1e6 else 6)
        assert module.remembered.batches == []  # memory is given back
        assert module.summary is not None and set(module.summary.baselines) == {"Random", "VisionRank"}
        found.append((module.summary.records, module.summary.baselines))
    assert found[0] == found[1] == found[2]
