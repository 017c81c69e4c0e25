"""Every recipe parses, instantiates and builds its model: a new one is tested by lying in recipes/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.backbones.presets import PRESETS
from glimpse_lightning.cli.packaged_recipes import purpose, recipes
from glimpse_lightning.cli.trainer_runs import RunCLI
from glimpse_lightning.evaluation import vlm_module
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.training.strategies import FSDP2

ALL = sorted(recipes().items())
# What `ablate` and `bench` read is no recipe of a run: tests/ablation/, tests/benchmark/. An overlay is none by itself.
RECIPES = [(name, path) for name, path in ALL if not name.startswith(("ablations/", "bench/", "trainer/"))]
ALIKE = {name for name, _ in RECIPES if name.startswith("methods/")} - {
    "methods/pyramid_drop", "methods/tome", "methods/idpruner"
}  # fmt: skip
"""Methods whose resolved configurations have the keys of another's, of stages or of a reducer: run in slow tests. By
default tests/test_layers.py parses them, and builds what they prune with."""
SAME_KEYS = {name for name, _ in RECIPES if name.startswith(("llava_1_5_13b/", "qwen2_5_vl_3b/"))}
"""Recipes of a published model whose resolved configurations have the keys of another size's: run in slow tests."""
OVERLAYS = {"fsdp2": FSDP2, "ddp": DDPStrategy}
STAND_INS = {  # recipe folder: the stand-in's family, the published model's preset, blocks of its vision tower
    "qwen2_5_vl_3b": (tiny_models.qwen2_5_vl, "qwen2.5-vl-3b", 32),
    "qwen2_5_vl_7b": (tiny_models.qwen2_5_vl, "qwen2.5-vl-7b", 32),
    "llava_1_5_7b": (tiny_models.llava, "llava-1.5-7b", 24),
    "llava_1_5_13b": (tiny_models.llava, "llava-1.5-13b", 24),
}
PUBLISHED = {  # reduce_layer; selected_visual_layers as blocks
    "qwen2_5_vl_3b": (23, [31, 23, 15, 7], "logits"),
    "qwen2_5_vl_7b": (18, [31, 23, 15, 7], "logits"),
    "llava_1_5_7b": (21, [22, 16, 10, 4], "log_softmax"),
    "llava_1_5_13b": (26, [22, 16, 10, 4], "log_softmax"),
}


def stand_in(name: str, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that run a recipe of a published model on a tiny random one of its family, without a download.

    What counts layers is mapped to the same share of the stand-in's depth: layer ``i`` of ``n`` is ``i * m // n`` of
    ``m``. The recipe stays as it is; it gets two samples as its data.
    """
    known = STAND_INS.get(name.split("/")[0])
    if "lora:" in path.read_text():
        pytest.importorskip("peft")
    if "pruner" in (yaml.safe_load(path.read_text()).get("vars") or {}):  # it starts from what another recipe trains
        scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
        pruner = gl.Pruner([gl.PruneStage(1, scorer, gl.policies.Threshold())])
        pruner.build(gl.load_backbone("glimpse-tiny").facts)
        return ["--vars.pruner", str(gl.save_pruner(pruner, folder / "pruner"))]
    if known is None:
        return []
    build, preset, vision_depth = known
    backbone = gl.wrap_backbone(build())
    monkeypatch.setattr(vlm_module, "load_backbone", lambda hub_id, **options: backbone)
    model = yaml.safe_load(path.read_text())["model"]
    depth, facts = PRESETS[preset]["text_config"]["num_hidden_layers"], backbone.facts
    layer = model["after_layer"] * facts.num_layers // depth
    if isinstance(model["scorer"], dict):
        blocks = [i * facts.vision_layers // vision_depth for i in model["scorer"]["init_args"]["vision_layers"]]
        vision = ["--model.scorer.vision_layers", str(blocks)]
    else:  # it reads no vision states
        vision = []
    Image.new("RGB", (16, 16)).save(folder / "image.png")
    rows = [{"question": f"{i}?", "answer": "yes", "image": "image.png", "boxes": [[0, 0, 0.5, 1]]} for i in range(2)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--vars.train", str(data), "--vars.val", str(data), "--model.after_layer", str(layer),
        "--trainer.accelerator", "cpu", *vision,
    ]  # fmt: skip


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_says_how_to_train_and_gives_no_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[RunCLI] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: built.append(self))
    overlay = ("--config", f"trainer/{name}", "--trainer.devices", "2")
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *overlay) == 0
    assert type(built[0].trainer.strategy) is OVERLAYS[name]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"]


def test_fsdp_on_a_cpu_names_the_overlay_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (("--config", "trainer/fsdp"), ("--trainer.strategy", "fsdp")):
        assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *flags) == 1
        assert "`--config trainer/fsdp2`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(name, path, marks=pytest.mark.slow if name in ALIKE else (), id=name) for name, path in RECIPES],
)
def test_recipe_parses_and_instantiates(name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[RunCLI] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: built.append(self))
    monkeypatch.chdir(tmp_path)
    flags = stand_in(name, path, tmp_path, monkeypatch)
    assert run("fit", path, tmp_path / "runs", *flags) == 0
    (cli,) = built
    if isinstance(cli.model, VLMModule):
        cli.model.configure_model()
        assert cli.datamodule is not None
    if name not in ALIKE | SAME_KEYS:
        _run_what_it_left(path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALIKE | SAME_KEYS))
def test_what_a_recipe_leaves_can_be_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipes()[name]
    test_recipe_parses_and_instantiates(name, path, tmp_path, monkeypatch)
    _run_what_it_left(path, tmp_path)


def _run_what_it_left(path: Path, folder: Path) -> None:
    """Run the resolved configuration in the folder of a recipe's run."""
    assert run("fit", folder / "runs" / path.stem / "fit_0" / "config.yaml", folder / "again") == 0


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_recipe_says_what_it_is_for(name: str, path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert purpose(path).endswith("."), f"{path}: `recipes list` shows the first line: let it be a whole sentence"
    for word in ("Launch:", "Override:", "Hardware:"):
        assert word in header, f"{path}: expected `{word}` in the header comment"
    assert f"recipes/{name}.yaml" in header


@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_settings(folder: str) -> None:
    """The reference's hyper-parameters (algorithm.md section 5), under our names."""
    after_layer, vision_layers, attention = PUBLISHED[folder]
    for kind in ("mask", "kl"):
        config = yaml.safe_load(recipes()[f"{folder}/vip_{kind}"].read_text())
        model, trainer = config["model"], config["trainer"]
        scorer = model["scorer"]["init_args"]
        assert model["after_layer"] == after_layer
        assert (scorer["vision_layers"], scorer["attention"]) == (vision_layers, attention)
        assert (scorer["attention_dim"], scorer["condition_dim"], scorer["heads"]) == (256, 512, 4)
        assert scorer["dropout"] == 0.1
        assert model["optimizer"] == {
            "lr": 1e-4, "weight_decay": 0.0, "warmup": 0.1, "final": 0.0, "betas": [0.9, 0.999]
        }  # fmt: skip
        train = config["data"]["train"]["init_args"]
        assert (train["draw"], train["draw_seed"]) == (20_000, 42)
        assert (config["data"]["batch_size"], trainer["accumulate_grad_batches"], trainer["max_epochs"]) == (1, 8, 1)
    mask = yaml.safe_load(recipes()[f"{folder}/vip_mask"].read_text())["model"]["objective"]["init_args"]
    assert mask == {"dice_weight": 1.0, "bce_weight": 0.1, "answer_weight": 1.0}


@pytest.mark.parametrize("folder", PUBLISHED)
def test_published_predictor_has_the_released_shapes(folder: str) -> None:
    """VIP as the recipe configures it, built for the published model's sizes without allocating its weights."""
    _, preset, vision_layers = STAND_INS[folder]
    config = yaml.safe_load(recipes()[f"{folder}/vip_mask"].read_text())["model"]
    text, vision = PRESETS[preset]["text_config"], PRESETS[preset]["vision_config"]
    facts = gl.ModelFacts(
        num_layers=text["num_hidden_layers"], num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"], head_dim=128, hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"], rms_norm_eps=1e-6, vision_layers=vision_layers,
        vision_hidden_size=vision["hidden_size"],
    )  # fmt: skip
    scorer = gl.scorers.VIP(**config["scorer"]["init_args"])
    with torch.device("meta"):
        scorer.build(facts, config["after_layer"])
    shapes = {name: tuple(p.shape) for name, p in scorer.named_parameters()}
    assert shapes["network.attn_in_proj.weight"] == (256, text["num_attention_heads"])
    assert shapes["network.cond_in_projs.3.weight"] == (512, vision["hidden_size"])
    assert shapes["glimpse.embeddings"] == (text["num_hidden_layers"], 1, text["hidden_size"])


def test_no_recipe_sets_what_it_does_not_use() -> None:
    for name, path in RECIPES:
        text = path.read_text()
        for variable in (yaml.safe_load(text) or {}).get("vars", {}):
            assert re.search(rf"\$\{{vars\.{variable}\b", text), f"{name}: vars.{variable} is unused"
