"""Pruners written as the reference writes them, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import FACTS
from golden_numbers import GOLDEN

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.cli import main
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.policies import Threshold, TopK
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.scorers import VIP, FixedRatio, UpstreamOptions

LLAVA = ModelFacts(6, 4, 4, 16, 64, 96, 1e-5, vision_layers=4, vision_hidden_size=32, model_type="llava")
WEIGHTS = "new_modules_gp.pt"


def export(source: Path, target: Path, *flags: str, form: str = "upstream") -> int:
    return main(["export", "--format", form, "--pruner", str(source), "--output", str(target), *flags])


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def flat(saved: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(saved, torch.Tensor):
        return {name: saved}
    return {path: value for key, part in saved.items() for path, value in flat(part, f"{name}/{key}").items()}


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (flat(torch.load(folder / WEIGHTS, weights_only=True)) for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("folder", ["new_modules/main", "llava/new_modules"])
def test_reference_folder_is_reproduced(tmp_path: Path, folder: str) -> None:
    """Through the reference's layout, through ours, and back."""
    source = GOLDEN / folder
    assert export(source, tmp_path / "direct") == 0
    assert export(source, tmp_path / "ours", form="glimpse") == 0
    assert export(tmp_path / "ours", tmp_path / "back") == 0
    for copy in ("direct", "back"):
        assert config(tmp_path / copy) == config(source)
        assert_same_weights(tmp_path / copy, source)


@pytest.mark.parametrize("facts", [FACTS, LLAVA], ids=["qwen", "llava"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_of_a_pruner_of_ours(
    tmp_path: Path, facts: ModelFacts, dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    options: dict[str, Any] = {"deep_supervision": True, "glimpse_layers": [0, 2]}
    options |= {} if facts is LLAVA else {"window": 4, "glimpse_norm": "layernorm"}
    scorer = VIP([3, 1], [2], "log_softmax", 32, 48, upstream=UpstreamOptions(**options))
    pruner = Pruner([PruneStage(4, scorer, Threshold(0.4, max_ratio=0.2, min_tokens=3, anchors=["tl"]))])
    pruner.build(facts)
    pruner.to(dtype).float()
    assert export(save_pruner(pruner, tmp_path / "a"), tmp_path / "b") == 0
    read = load_pruner(tmp_path / "b")
    assert export(tmp_path / "b", tmp_path / "c") == 0
    assert config(tmp_path / "c") == config(tmp_path / "b")
    assert_same_weights(tmp_path / "c", tmp_path / "b")
    (stage,) = read.stages
    assert isinstance(stage, PruneStage) and isinstance(stage.scorer, VIP) and isinstance(stage.policy, Threshold)
    assert stage.after_layer == 4
    assert (stage.scorer.conditions, stage.scorer.attended) == ((3, 1), (2,))
    assert stage.scorer.window == options.get("window")
    policy = stage.policy
    assert (policy.threshold, policy.max_ratio, policy.min_tokens, policy.anchors) == (0.4, 0.2, 3, ["tl"])
    assert all(torch.equal(value, pruner.state_dict()[name]) for name, value in read.state_dict().items())
    saved = flat(torch.load(tmp_path / "b" / WEIGHTS, weights_only=True))
    assert {value.dtype for value in saved.values()} == {dtype}, "bfloat16 where it loses nothing"
    assert not recwarn.list


def test_changed_settings_are_written(tmp_path: Path) -> None:
    pruner = load_pruner(GOLDEN / "new_modules" / "main")
    pruner.stages[0].policy = Threshold(0.3, min_tokens=4)
    assert export(save_pruner(pruner, tmp_path / "a"), tmp_path / "b") == 0
    expected = config(GOLDEN / "new_modules" / "main") | {"reduce_threshold": 0.3, "min_remain_num": 4}
    assert config(tmp_path / "b") == expected


def test_base_model_goes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    fields = {"model_type": "qwen2_5_vl", "vocab_size": 512, "rope_theta": 1e6, "hidden_size": 64}
    (base / "config.json").write_text(json.dumps(fields))
    pruner = Pruner([PruneStage(3, VIP(attention_dim=32, condition_dim=48), Threshold())])
    pruner.build(FACTS)
    save_pruner(pruner, tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "b", "--base", str(base)) == 0
    written = config(tmp_path / "b")
    assert (written["model_type"], written["vocab_size"], written["rope_theta"]) == ("qwen2_5_vl_gp", 512, 1e6)
    (base / "config.json").write_text(json.dumps(fields | {"hidden_size": 128}))
    assert export(tmp_path / "a", tmp_path / "b", "--base", str(base)) == 1
    assert "hidden_size = 64), but got 128" in capsys.readouterr().err


def test_the_fields_of_the_model_it_was_trained_on_go_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    backbone = load_backbone("glimpse-llava")
    model = PrunedVLM(backbone, Pruner([PruneStage(3, VIP(attention_dim=32, condition_dim=48), Threshold())]))
    save_pruner(model.pruner, tmp_path / "a", backbone)
    assert export(tmp_path / "a", tmp_path / "b") == 0
    own, written = backbone.model.config.to_dict(), config(tmp_path / "b")
    for name in ("image_token_index", "vision_feature_layer", "projector_hidden_act", "text_config", "vision_config"):
        assert name in written and name in own
    load_pruner(tmp_path / "b")
    assert not [said for said in recwarn.list if "not understood" in str(said.message)]
    model.pruner.trained_on = None
    save_pruner(model.pruner, tmp_path / "c")
    assert export(tmp_path / "c", tmp_path / "d") == 0
    assert "lacks fields of the base model" in capsys.readouterr().out


def test_all_that_the_format_cannot_hold_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorer = VIP(standardise=True, query=["last", "text"], rotary=False)
    pruner = Pruner([PruneStage(1, scorer, Threshold(scale="raw"), early_kv="keep")])
    pruner.build(FACTS)
    assert export(save_pruner(pruner, tmp_path / "a"), tmp_path / "b") == 1
    error = capsys.readouterr().err
    for word in ("standardise=True", "query=['last', 'text']", "without rotary", "scale='raw'", "early_kv='keep'"):
        assert word in error


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([PruneStage(1, VIP(), Threshold()), PruneStage(2, VIP(), Threshold())], ["one stage", "2 stages"]),
        ([PruneStage(1, FixedRatio(), Threshold())], ["scorer VIP", "FixedRatio"]),
        ([PruneStage(1, VIP(), TopK(3))], ["policy Threshold", "TopK"]),
        ([PruneStage(1, VIP(), Threshold(per="item"))], ["per='sample'", "'item'"]),
        ([PruneStage(1, VIP(upstream=UpstreamOptions(window=3)), Threshold())], ["window=None", "LLaVA", "3"]),
    ],
)
def test_what_the_reference_cannot_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: list[PruneStage], words: list[str]
) -> None:
    pruner = Pruner(stages)
    pruner.build(LLAVA)
    assert export(save_pruner(pruner, tmp_path / "a"), tmp_path / "b") == 1
    error = capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    for word in [*words, "--format glimpse"]:
        assert word in error


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, word in (
        (["export"], "--output"),
        (["export", "--output", "y"], "--pruner"),
        (["export", "--format", "onnx", "--pruner", "x", "--output", "y"], "onnx"),
        (["export", "--base", "z", "--pruner", "x", "--output", "y"], "--base"),
        (["export", "--pruner", str(tmp_path / "none"), "--output", "y"], "is no folder"),
    ):
        assert main(args) == 1
        assert word in capsys.readouterr().err
