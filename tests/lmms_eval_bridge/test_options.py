"""What ``--model_args`` say about the backbone reaches it, a recipe's resolution cut included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_cache import commit_of, store, tiny
from lmms_eval.api.instance import Instance

import glimpse_lightning as gl
from glimpse_lightning.integrations.lmms_eval.model import Glimpse

SAMPLES = [gl.GlyphVQA("test", 3, image_size=448)[index] for index in range(3)]


def answered(model: Glimpse) -> list[tuple[int, int]]:
    """Tokens kept and tokens there were, of each question."""
    model.task_dict = {"t": {"test": SAMPLES}}
    requests = [
        Instance(
            "generate_until",
            (sample.question, {"max_new_tokens": 1}, lambda s: s.images, index, "t", "test"),
            idx=0,
            metadata={"task": "t", "doc_id": index, "repeats": 1},
        )
        for index, sample in enumerate(SAMPLES)
    ]
    model.generate_until(requests)
    return [(kept, total) for _, kept, total in model._kept]


def test_bounds_on_pixels() -> None:
    model = Glimpse(pretrained="glimpse-tiny", batch_size=3, max_pixels=50176, min_pixels=784)
    assert model.vlm.backbone.asked() == "Backbone with max_pixels 50176, min_pixels 784."
    assert answered(model) == [(64, 64)] * 3
    with pytest.raises(gl.GlimpseError, match=r"has no setting 'max_pixel'. Did you mean max_pixels"):
        Glimpse(pretrained="glimpse-tiny", max_pixel=50176)


def test_a_recipes_settings_below_those_of_the_command_line(tmp_path: Path) -> None:
    text = "model: {after_layer: 1, scorer: Random, policy: {class_path: KeepRatio, init_args: {ratio: 0.25}},"
    (tmp_path / "r.yaml").write_text(f"{text} processor: {{min_pixels: 784, max_pixels: 100352}}}}")
    model = Glimpse(recipe=str(tmp_path / "r.yaml"), batch_size=2, max_pixels=50176)
    assert model.vlm.backbone.settings == {"min_pixels": 784, "max_pixels": 50176}
    assert answered(model) == [(16, 64)] * 3


def test_the_resolution_cut_of_a_recipe_counts_against_whole_images(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {resolution: {ratio: 0.33}}")
    assert answered(Glimpse(recipe=str(tmp_path / "r.yaml"), batch_size=2)) == [(81, 256)] * 3
    (tmp_path / "whole.yaml").write_text("model: {resolution: {ratio: 1.0}}")
    assert answered(Glimpse(recipe=str(tmp_path / "whole.yaml"), batch_size=2)) == [(256, 256)] * 3


def test_revisions_of_backbone_and_pruner(tmp_path: Path) -> None:
    facts = gl.load_backbone("glimpse-tiny", device_map="meta").facts
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.25))])
    pruner.build(facts)
    where: dict[str, Any] = {"cache_dir": str(store(tmp_path, "me/model", {"v1": tiny(tmp_path / "m", 50176)}))}
    store(tmp_path, "me/pruner", {"v2": gl.save_pruner(pruner, tmp_path / "p")})
    where |= {"local_files_only": True, "pretrained": "me/model", "batch_size": 3}
    model = Glimpse(revision="v1", pruner="me/pruner", pruner_revision="v2", **where)
    assert answered(model) == [(16, 64)] * 3
    with pytest.raises(gl.GlimpseError, match="Could not load backbone 'me/model'"):
        Glimpse(revision=commit_of("v3"), **where)
    with pytest.raises(gl.GlimpseError, match="Expected `pruner` to say what `pruner_revision` is of"):
        Glimpse(revision="v1", pruner_revision="v2", **where)
