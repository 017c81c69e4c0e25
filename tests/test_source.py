"""A revision reaches everything that is loaded: configuration, processor, weights, pruners, by every door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import OFFLINE, commit_of, store, tiny
from runs import run, write_recipe
from safetensors.torch import load_file, save_file

import glimpse_lightning as gl
from glimpse_lightning.backbones.load import auto_dtype
from glimpse_lightning.backbones.shares import empty_model, load_shares
from glimpse_lightning.bench import settings as bench
from glimpse_lightning.bench.variants import backbone_of, variants
from glimpse_lightning.cli import export
from glimpse_lightning.cli.identity import differences
from glimpse_lightning.cli.pruner_flag import pruner_alone
from glimpse_lightning.runtime.source import Source
from glimpse_lightning.training.module import PruningModule

REPO, PRUNER = "me/model", "me/pruner"
PIXELS = {"main": 200704, "v1": 100352}
RATIOS = {"main": 0.5, "v1": 0.25}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions of a model, of other sizes of images, data types and weights, and two of a pruner."""
    folder = tmp_path_factory.mktemp("hub")
    models = {name: tiny(folder / f"model_{name}", pixels) for name, pixels in PIXELS.items()}
    config = json.loads((models["v1"] / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "float16"
    (models["v1"] / "config.json").write_text(json.dumps(config))
    weights = {
        name: value + 1 if "norm" in name else value
        for name, value in load_file(models["v1"] / "model.safetensors").items()
    }
    save_file(weights, models["v1"] / "model.safetensors", {"format": "pt"})
    pruners = {}
    facts = gl.load_backbone("glimpse-tiny", device_map="meta").facts
    for name, ratio in RATIOS.items():
        pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(ratio))])
        pruner.build(facts)
        pruners[name] = gl.save_pruner(pruner, folder / f"pruner_{name}")
    store(folder / "cache", REPO, models)
    return store(folder / "cache", PRUNER, pruners)


def norm(backbone: Any) -> float:
    return float(backbone.decoder.norm.weight.detach().float().mean())


@pytest.mark.parametrize("revision", [None, "main", "v1", commit_of("v1")])
def test_every_way_of_loading_takes_it(cache: Path, revision: str | None) -> None:
    where = {"cache_dir": str(cache), "revision": revision, **OFFLINE}
    old = revision not in (None, "main")
    plain, empty = gl.load_backbone(REPO, **where), gl.load_backbone(REPO, device_map="meta", **where)
    assert plain.max_pixels == empty.max_pixels == PIXELS["v1" if old else "main"]
    assert gl.load_backbone(REPO, dtype="auto", **where).model.config.dtype == auto_dtype(REPO, "cpu", **where)
    later = gl.wrap_backbone(empty_model(REPO, torch.float32, "sdpa", **where))
    load_shares(later, REPO, **where)
    assert norm(later) == norm(plain)
    assert (norm(plain) == norm(gl.load_backbone("glimpse-tiny"))) is not old
    assert plain.described()["revision"] == empty.described()["revision"] == revision


def test_an_empty_token_is_passed_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def download(name: str, allow_patterns: list[str], **where: Any) -> Path:
        seen.append(where)
        return cache / f"models--me--pruner/snapshots/{commit_of('v1')}"

    monkeypatch.setattr("glimpse_lightning.pruner.files.snapshot_download", download)
    gl.load_pruner(PRUNER, token=False, revision="v1", cache_dir=None)
    assert seen == [{"token": False, "revision": "v1"}]


@pytest.mark.parametrize("revision", RATIOS)
def test_pruners_have_revisions(cache: Path, revision: str) -> None:
    pruner = gl.load_pruner(PRUNER, revision=revision, cache_dir=str(cache), local_files_only=True)
    assert pruner.stages[0].policy.ratio == RATIOS[revision]  # type: ignore[union-attr]


def test_recipes_say_it_for_both(cache: Path, tmp_path: Path) -> None:
    """By flag and by file; results and configuration hold it, a token nowhere."""
    text = f"""
model:
  backbone: {REPO}
  source: {{revision: v1, cache_dir: {cache}, local_files_only: true}}
  pruner: {PRUNER}
  pruner_source: {{cache_dir: {cache}, local_files_only: true}}
  baselines: []
  max_new_tokens: 2
data:
  test: {{class_path: GlyphVQA, init_args: {{split: test, size: 2, image_size: 448}}}}
  num_workers: 0
trainer: {{accelerator: cpu, enable_progress_bar: false, callbacks: []}}
"""
    recipe = write_recipe(tmp_path, text)
    assert run("test", recipe, tmp_path / "runs", "--model.pruner_source.revision", "v1") == 0
    folder = tmp_path / "runs/small/test_0"
    results = json.loads((folder / "results.json").read_text())
    assert (results["backbone"], results["revision"]) == (REPO, "v1")
    assert results["image_processor"]["size"] == {"longest_edge": PIXELS["v1"], "shortest_edge": 3136}
    tokens = PIXELS["v1"] // 28**2
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {(line["kept"], line["total"]) for line in lines} <= {(n // 4, n) for n in range(tokens - 28, tokens + 1)}
    written = (folder / "config.yaml").read_text()
    assert written.count("revision: v1") == 2 and "token:" not in written


def test_a_revision_of_the_backbone_is_known_before_it_is_loaded(cache: Path) -> None:
    source = Source("v1", str(cache), True)
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    module = PruningModule(REPO, source=source, after_layer=1, scorer=scorer, policy=gl.policies.KeepRatio(0.5))
    assert module.learns
    module.configure_model()
    assert module.model.backbone.max_pixels == PIXELS["v1"]


def test_benchmarks_say_it_for_both(cache: Path, tmp_path: Path) -> None:
    where = f"{{revision: v1, cache_dir: {cache}, local_files_only: true}}"
    path = tmp_path / "bench.yaml"
    path.write_text(f"model: {REPO}\nsource: {where}\npruner: {PRUNER}\npruner_source: {where}\ndevice: cpu\n")
    settings = bench.read(path)
    backbone = backbone_of(settings)
    assert backbone.max_pixels == PIXELS["v1"]
    pruner = variants(settings, backbone)[-1].model.pruner  # type: ignore[union-attr]
    assert pruner.stages[0].policy.ratio == RATIOS["v1"]  # type: ignore[union-attr]
    path.write_text(f"model: {REPO}\nsource: {{token: x}}\n")
    with pytest.raises(gl.GlimpseError, match="`source` to be a mapping with revision, cache_dir, local_files_only"):
        bench.read(path)


def test_export_says_it(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    out = export.run(["--pruner", PRUNER, "--revision", "v1", "--output", str(tmp_path / "out")])
    assert gl.load_pruner(out).stages[0].policy.ratio == RATIOS["v1"]  # type: ignore[union-attr]


def test_a_folder_has_no_revision(cache: Path) -> None:
    folder = cache / f"models--me--pruner/snapshots/{commit_of('v1')}"
    for load in (gl.load_pruner, gl.load_backbone):
        with pytest.raises(gl.GlimpseError, match=r"Expected no `revision` for .* folder of this machine.*'v1'"):
            load(str(folder), revision="v1")  # type: ignore[operator]
    with pytest.raises(gl.GlimpseError, match="Expected no `revision` for 'glimpse-tiny'"):
        gl.load_backbone("glimpse-tiny", revision="v1", device_map="meta")
    with pytest.raises(gl.GlimpseError, match=r"`load_pruner` has no argument 'revison'. Did you mean revision"):
        gl.load_pruner(folder, revison="v1")
    with pytest.raises(gl.GlimpseError, match=r"Expected `model\.pruner` to say what `model\.pruner_source`"):
        PruningModule(pruner_source=Source("v1"))
    with pytest.raises(gl.GlimpseError, match="they are arguments of `load_backbone`"):
        PruningModule(gl.load_backbone("glimpse-tiny"), source=Source("v1"))  # type: ignore[arg-type]


def test_what_cannot_be_done_without_weights_is_said() -> None:
    with pytest.raises(gl.GlimpseError, match="Expected no max_memory, quantization with `device_map: meta`"):
        gl.load_backbone("glimpse-tiny", device_map="meta", quantization="bnb-4bit", max_memory={})


def test_it_is_part_of_what_makes_weights() -> None:
    """Leaving a revision out means the main branch, not the one that was trained on; folders do not matter."""
    one = {"model": {"source": {"revision": "v1", "cache_dir": "/a"}}}
    other = {"model": {"source": {"revision": None, "cache_dir": "/b"}}}
    assert differences(one, other) == ["model.source.revision: v1 != None"]
    assert differences(other, {"model": {}}) == []


def test_a_pruner_by_flag_has_not_the_revision_of_the_recipes() -> None:
    args, recipe = ["test", "--model.pruner", "DIR"], {"model": {"pruner_source": {"revision": "v1"}}}
    assert pruner_alone(args, [recipe])[3:] == ["--model.pruner_source.revision", "null"]
    own = [*args, "--model.pruner_source.revision", "v2"]
    assert pruner_alone(own, [recipe]) == own
