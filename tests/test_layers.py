"""Layers by number and by share of the depth: what recipes name on models of several depths."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import FACTS
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning import reducers as r
from glimpse_lightning import scorers as s
from glimpse_lightning.cli.packaged_recipes import recipes
from glimpse_lightning.cli.trainer_runs import RunCLI
from glimpse_lightning.evaluation.module import EvaluationModule
from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError

# Decoder's depth: blocks of the vision tower, and those of them with full attention. Glimpse-tiny, Qwen2.5-VL-7B,
# LLaVA-1.5-7B, LLaVA-1.5-13B.
DEPTHS: dict[int, tuple[int, tuple[int, ...]]] = {8: (5, (2, 4)), 28: (32, (7, 15, 23, 31)), 32: (24, ()), 40: (24, ())}
PUBLISHED = {
    "pyramid_drop": {32: [7, 15, 23]},
    "sparsevlm": {32: [2, 6, 15]},
    "vtw": {32: [14]},
    "vscan": {32: [-1, 15], 28: [-1, 13]},
    "fastv": {32: [1], 40: [1]},
    "dart": {32: [1], 28: [1]},
}
SCALED = {  # as they were measured on glimpse-tiny (VTW: after 4, which is no share that is 15 of 32 layers)
    "pyramid_drop": [1, 3, 5],
    "sparsevlm": [0, 1, 3],
    "vtw": [3],
    "vscan": [-1, 3],
    "autoprune": [0, 1, 3, 5],
    "fastv": [1],
    "dart": [1],
}
METHODS = sorted(name.removeprefix("methods/") for name in recipes() if name.startswith("methods/"))


def facts_of(depth: int) -> gl.ModelFacts:
    blocks, whole = DEPTHS[depth]
    return replace(FACTS, num_layers=depth, vision_layers=blocks, whole_image_blocks=whole)


def pruner_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pruner | None:
    """What a method's recipe prunes with, before there is a model; ``None`` where it takes a saved pruner, or none."""
    built: list[Any] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: built.append(self.model))
    path = recipes()[f"methods/{name}"]
    if (yaml.safe_load(path.read_text()).get("vars") or {}).get("pruner"):
        return None
    assert run("fit", path, folder / "runs") == 0
    (source,) = built[0]._source
    return source


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_layers_at_every_depth(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = pruner_of(name, tmp_path, monkeypatch)
    if pruner is None:
        assert name in ("full", "resolution_cut", "idpruner")
        return
    for depth in DEPTHS:
        fresh = deepcopy(pruner)
        fresh.build(facts_of(depth))
        layers = [stage.after_layer for stage in fresh.stages]
        assert layers == sorted(layers) and all(isinstance(layer, int) and -1 <= layer < depth - 1 for layer in layers)
        if depth == 8:
            assert layers == SCALED.get(name, [-1])
        if depth in PUBLISHED.get(name, {}):
            assert layers == PUBLISHED[name][depth]
        for stage in fresh.stages:
            if isinstance(stage.policy, p.LogisticRatio):
                assert stage.policy.after_layers[stage.policy.stage] == stage.after_layer


@pytest.mark.parametrize(("name", "argument", "blocks"), [
    ("hiprune", "object_layer", {8: 2, 28: 15, 32: 8, 40: 8}), ("vscan", "shallow_layer", {8: 2, 28: 7, 32: 5, 40: 5}),
])  # fmt: skip
def test_blocks_of_the_vision_tower(
    name: str, argument: str, blocks: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published for CLIP's 24; elsewhere the nearest block that sees whole images."""
    pruner = pruner_of(name, tmp_path, monkeypatch)
    for depth, block in blocks.items():
        fresh = deepcopy(pruner)
        assert fresh is not None
        fresh.build(facts_of(depth))
        assert getattr(fresh.stages[0].policy, argument) == block


def test_glimpse_tinys_tower_says_which_blocks_see_whole_images() -> None:
    facts = gl.load_backbone("glimpse-tiny").facts
    assert (facts.num_layers, facts.vision_layers, facts.whole_image_blocks) == (8, *DEPTHS[8])


@pytest.mark.parametrize(
    ("share", "depth", "layer"),
    [(0.5, 1, 0), (0.01, 40, 0), (0.5, 7, 3), (0.0625, 8, 0), (0.1875, 8, 1), (0.999, 32, 31), (1 / 3, 27, 8)],
)
def test_rounding(share: float, depth: int, layer: int) -> None:
    stage = gl.PruneStage(share, s.Random(), p.TopK(1))
    stage.number_layers(replace(FACTS, num_layers=depth))
    assert stage.after_layer == layer


def test_all_kinds_of_arguments() -> None:
    """Single, optional and lists; of scorers, policies and reducers; words and what is not given stay."""
    facts = replace(FACTS, num_layers=12, vision_layers=8)
    parts = [
        s.AttentionRank(0.25), s.AttentionRank(), s.TextRank(4), s.VisionTextRank(0.5, 0.75), s.VisionRank(-2),
        s.Holistic(0.125), s.VIP([0.9, 3], [0.2, 5], upstream=s.UpstreamOptions(glimpse_layers=[0, 0.5])),
        s.VIP(attention_layers="all"),
        r.MergeNearest(key_layer=0.5), r.MergeNearest(), r.MergeNeighbours(key_layer=0.99),
    ]  # fmt: skip
    for part in parts:
        part.number_layers(facts)
    found = [[getattr(part, name) for name in part.layer_arguments] for part in parts]
    assert found == [
        [2], [None], [4], [5, 5], [-2], [0], [[6, 3], [1, 5], [0, 5]], [None, "all", None], [3], [None], [7],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gl.PruneStage(1.0, s.Random(), p.TopK(1)), "Expected `after_layer`"),
        (lambda: gl.PruneStage(-0.5, s.Random(), p.TopK(1)), "Expected `after_layer`"),
        (lambda: s.AttentionRank(3.0), "Expected `layer`"),
        (lambda: s.VIP(vision_layers=[3, 2.5]), "Expected `vision_layers`"),
        (lambda: p.LogisticRatio(0, [0.5, 0.25], 0.3), "rise"),
        (lambda: s.VisionRank(24).number_layers(replace(FACTS, vision_layers=24)), "one of the 24 blocks"),
        (lambda: s.VisionRank(-25).number_layers(replace(FACTS, vision_layers=24)), "one of the 24 blocks"),
        (lambda: s.VisionRank(0.5).number_layers(replace(FACTS, vision_layers=0)), "not known"),
        (lambda: p.LogisticRatio(0, [0.1, 0.2], 0.3).number_layers(replace(FACTS, num_layers=4)), "too shallow"),
    ],
)
def test_what_names_no_layer_is_refused(make: Any, said: str) -> None:
    with pytest.raises(GlimpseError, match=said):
        make()


def test_stages_are_ordered_once_shares_are_layers() -> None:
    stages = [gl.PruneStage(layer, s.Random(), p.TopK(1)) for layer in (3, 0.25)]
    Pruner(deepcopy(stages)).build(replace(FACTS, num_layers=32))
    with pytest.raises(GlimpseError, match=r"layers \[3, 1\]"):
        Pruner(stages).build(replace(FACTS, num_layers=8))


def test_a_saved_pruner_holds_numbers(tmp_path: Path) -> None:
    pruner = Pruner(
        [gl.PruneStage(0.5, s.AttentionRank(0.25), p.HiPrune(ratio=0.5, object_layer=0.3), r.MergeNearest())]
    )
    pruner.build(facts_of(28))
    loaded = load_pruner(save_pruner(pruner, tmp_path / "pruner"))
    assert loaded.facts == facts_of(28)
    (stage,) = loaded.stages
    assert (stage.after_layer, stage.scorer.layer, stage.policy.object_layer) == (13, 6, 7)  # type: ignore[union-attr]


def test_a_run_says_the_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flags = ("--model.after_layer", "0.45", "--model.baselines", "[]")
    scorer = ("--model.scorer", "AttentionRank", "--model.policy", "{class_path: KeepRatio, init_args: {ratio: 0.5}}")
    assert run("test", write_recipe(tmp_path), tmp_path / "runs", *flags, *scorer) == 0
    results = json.loads((tmp_path / "runs" / "small" / "test_0" / "results.json").read_text())
    assert results["after_layers"] == [3]
    assert "pruned after layer 3 of 8" in caplog.text


@pytest.mark.parametrize(
    ("layers", "said", "warns"),
    [([-1], "pruned before the language model.", False), ([-1, 2], "model and after layer 2 of 8", False),
     ([1, 3], "after layer 1, 3 of 8", False), ([7], "after layer 7 of 8", True)],
)  # fmt: skip
def test_a_run_says_where_and_warns_where_no_layer_is_saved(
    layers: list[int], said: str, warns: bool, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level("INFO")
    stages = [gl.PruneStage(layer, gl.scorers.Random(), gl.policies.KeepRatio(0.5)) for layer in layers]
    EvaluationModule("glimpse-tiny", stages=stages).configure_model()
    assert said in caplog.text
    assert any("only the KV cache" in str(warning.message) for warning in recwarn) == warns
