"""Places of version 0.1 that code and files still name."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from importlib import import_module, reload

import pytest

import glimpse_lightning as gl
from glimpse_lightning.runtime import renames

PUBLIC = {
    "backbones.base": ("Backbone",),
    "backbones.placeholders": ("PlaceholderBackbone", "Visuals"),
    "testing": ("check_backbone",),
    "scorers.base": ("Scorer", "Requires", "AttentionProbe"),
    "visual_tokens": ("VisualTokens", "VisionAttention", "VisionKeys", "VisionTap", "ModelFacts"),
    "data.glyph_vqa": ("GlyphVQA",),
    "cli": ("main",),
}
"""Import paths for good: they say nothing."""
PACKAGES = {
    "model": ("PrunedVLM",),
    "evaluation": ("Evaluator", "baseline_models", "training_free_scorers", "token_counts", "kept_and_total"),
}
"""Modules of before that are packages now."""


@pytest.mark.parametrize("old", sorted(renames.MOVED))
def test_modules_are_found_at_their_old_places(old: str) -> None:
    new = import_module(f"glimpse_lightning.{renames.MOVED[old]}")
    sys.modules.pop(f"glimpse_lightning.{old}", None)
    with pytest.warns(
        DeprecationWarning, match=rf"glimpse_lightning\.{old} is now glimpse_lightning\.\S+; .* version 0\.4"
    ):
        found = import_module(f"glimpse_lightning.{old}")
    names = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(found, name) is getattr(new, name) for name in names)
    with pytest.raises(AttributeError):
        found.no_such_name  # noqa: B018


def test_submodules_of_moved_packages_are_found() -> None:
    with pytest.warns(DeprecationWarning, match="is now glimpse_lightning.bench.theory"):
        found = import_module("glimpse_lightning.benchmark.theory")
    assert found.__getattr__("__file__") == import_module("glimpse_lightning.bench.theory").__file__


@pytest.mark.parametrize(("module", "names"), [*PUBLIC.items(), *PACKAGES.items()], ids=[*PUBLIC, *PACKAGES])
def test_public_places_say_nothing(module: str, names: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        found = import_module(f"glimpse_lightning.{module}")
        assert all(getattr(found, name) for name in names)


def test_what_never_was_is_not_found() -> None:
    for name in ("no_such_module", "pruner.no_such_module", "model.no_such_module"):
        with pytest.raises(ModuleNotFoundError):
            import_module(f"glimpse_lightning.{name}")


def test_the_warning_names_the_line_of_the_caller() -> None:
    sys.modules.pop("glimpse_lightning.engine.pruner", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("import sys\nfrom glimpse_lightning.engine.pruner import Pruner\n", "<caller>", "exec"), {})
    (said,) = caught
    assert (said.filename, said.lineno, said.category) == ("<caller>", 2, DeprecationWarning)
    assert "glimpse_lightning.engine.pruner is now glimpse_lightning.pruner; " in str(said.message)
    assert "the old path works until version 0.4." in str(said.message)


def test_class_paths_of_old_configurations_are_brought_up_to_date() -> None:
    old = {"strategy": {"class_path": "glimpse_lightning.strategies.FSDP2", "init_args": {"a": [1, "x"]}}, "n": 2}
    new = {
        "strategy": {"class_path": "glimpse_lightning.training.strategies.FSDP2", "init_args": {"a": [1, "x"]}},
        "n": 2,
    }
    assert renames.current(old) == new
    assert renames.current(new) == new
    assert renames.current("glimpse_lightning.scorers.VIP") == "glimpse_lightning.scorers.VIP"
    assert renames.current("see glimpse_lightning.pruner.Pruner") == "see glimpse_lightning.pruner.Pruner"


def test_old_modules_are_attributes_of_the_package() -> None:
    vars(gl).pop("errors", None)
    sys.modules.pop("glimpse_lightning.errors", None)
    with pytest.warns(DeprecationWarning, match="is now glimpse_lightning.runtime.errors"):
        old = gl.errors
    assert old.GlimpseError is gl.GlimpseError


def test_arguments_of_old_configurations_are_put_into_their_block() -> None:
    for path in ("VIP", "glimpse_lightning.scorers.vip.VIP"):
        old = {"scorer": {"class_path": path, "init_args": {"heads": 2, "window": 4, "masks": "zero"}}}
        new = {"scorer": {"class_path": path, "init_args": {"heads": 2, "upstream": {"window": 4, "masks": "zero"}}}}
        assert renames.current(old) == renames.current(new) == new
    for other in ({"class_path": "mine.VIP", "init_args": {"window": 4}}, {"class_path": "VIP", "init_args": None}):
        assert renames.current(other) == other
    assert set(renames.BLOCKS["VIP"][1]) == {field.name for field in fields(gl.scorers.UpstreamOptions)}


def test_removed_arguments_of_old_configurations_are_left_out() -> None:
    old = {"class_path": "HiPrune", "init_args": {"wrap": True, "anchors": 0.1}}
    assert renames.current(old) == {"class_path": "HiPrune", "init_args": {"anchors": 0.1}}
    other = {"class_path": "HiPrune", "init_args": {"wrap": False}}
    assert renames.current(other) == other, "it would work otherwise"


def test_one_finder_is_enough() -> None:
    reload(gl)
    assert sum(type(finder).__name__ == "OldPlaces" for finder in sys.meta_path) == 1
