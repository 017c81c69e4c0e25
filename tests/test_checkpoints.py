"""Pruners on disk: ours and the reference's, whole and broken."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import FACTS
from golden_numbers import GOLDEN, tensors

from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.policies import Policy, Threshold, TopK
from glimpse_lightning.pruner import files as checkpoints
from glimpse_lightning.pruner.pruner import Pruner, check_facts
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import VIP, FixedRatio


def pruner(**kwargs: Any) -> Pruner:
    made = Pruner(
        [
            PruneStage(0, FixedRatio(), TopK(9)),
            PruneStage(3, VIP(attention_dim=32, condition_dim=48, **kwargs), Threshold(anchors=("tl",))),
        ]
    )
    made.build(FACTS)
    return made


def test_round_trip(tmp_path: Path) -> None:
    saved = pruner(
        vision_layers=(3, 1), upstream={"glimpse_length": 2, "glimpse_norm": "layernorm", "deep_supervision": True}
    )
    random_state = torch.get_rng_state()
    loaded = load_pruner(save_pruner(saved, tmp_path / "deep" / "pruner", backbone="tiny"))
    assert torch.equal(random_state, torch.get_rng_state()), "loading must not disturb anyone's random numbers"
    assert [stage.after_layer for stage in loaded.stages] == [0, 3]
    assert loaded.facts == FACTS
    assert not any(module.training for module in loaded.modules()), "dropout would scatter the scores"
    state = saved.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["pruner"]
    loaded.build(FACTS)
    assert torch.equal(
        loaded.state_dict()["stages.1.scorer.glimpse.embeddings"], state["stages.1.scorer.glimpse.embeddings"]
    )


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_pruner(pruner(), tmp_path / "pruner")
    second = pruner()
    save_pruner(second, tmp_path / "pruner")
    name = "stages.1.scorer.glimpse.embeddings"
    assert torch.equal(load_pruner(tmp_path / "pruner").state_dict()[name], second.state_dict()[name])
    assert os.listdir(tmp_path) == ["pruner"]


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(GlimpseError, match="holds something else"):
        save_pruner(pruner(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    first = pruner()
    if before:
        save_pruner(first, tmp_path / "pruner")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(GlimpseError, match=r"No space left on device.*Free some space"):
            save_pruner(pruner(), tmp_path / "pruner")
    assert os.listdir(tmp_path) == (["pruner"] if before else [])
    if before:
        name = "stages.1.scorer.glimpse.embeddings"
        assert torch.equal(load_pruner(tmp_path / "pruner").state_dict()[name], first.state_dict()[name])


def test_unbuilt(tmp_path: Path) -> None:
    with pytest.raises(GlimpseError, match="has no weights yet"):
        save_pruner(Pruner([PruneStage(0, FixedRatio(), TopK(9))]), tmp_path / "pruner")


class Forgetful(Policy):
    """Does not keep its argument."""

    def __init__(self, share: float) -> None:
        del share

    def select(self, scores: Any, tokens: Any) -> Any:
        return scores > 0


def test_argument_that_is_not_kept(tmp_path: Path) -> None:
    made = Pruner([PruneStage(0, FixedRatio(), Forgetful(0.5))])
    made.build(FACTS)
    with pytest.raises(GlimpseError, match=r"Add `self.share = share`"):
        save_pruner(made, tmp_path / "pruner")
    assert not list(tmp_path.iterdir())


def spoil(folder: Path, how: str) -> None:
    config = folder / "config.json"
    weights = folder / "pruner.safetensors"
    content = json.loads(config.read_text())
    match how:
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights":
            weights.unlink()
        case "no config":
            config.unlink()
        case "cut config":
            config.write_text(config.read_text()[:-20])
        case "newer format":
            config.write_text(json.dumps(content | {"format": 99}))
        case "unknown class":
            content["stages"][0]["policy"]["class_path"] = "nowhere.Policy"
            config.write_text(json.dumps(content))
        case "wrong class":
            content["stages"][0]["policy"]["class_path"] = "collections.OrderedDict"
            config.write_text(json.dumps(content))
        case "other weights":
            content["stages"][1]["scorer"]["init_args"]["attention_dim"] = 64
            config.write_text(json.dumps(content))
        case "unknown data type":
            config.write_text(json.dumps(content | {"origin_dtype": "bfloat17"}))
        case "unknown argument":
            content["stages"][0]["policy"]["init_args"]["counts"] = 3
            config.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut weights", "cut short"),
        ("no weights", "to hold a pruner"),
        ("no config", "to exist and be readable"),
        ("cut config", "it is broken"),
        ("newer format", "in format 1, but got 99"),
        ("unknown class", "nowhere.Policy, which cannot be imported"),
        ("wrong class", "to be a Policy, but it is not"),
        ("other weights", "does not hold the weights"),
        ("unknown data type", "origin_dtype.*a data type of torch.*'bfloat17'"),
        ("unknown argument", "does not describe a pruner.*counts"),
    ],
)
def test_broken_folders(tmp_path: Path, how: str, message: str) -> None:
    folder = save_pruner(pruner(), tmp_path / "pruner")
    spoil(folder, how)
    with pytest.raises(GlimpseError, match=message):
        load_pruner(folder)


def test_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GlimpseError, match="`fit` of the recipe 'vision_selector' leaves one there: run it first"):
        load_pruner("runs/vision_selector/fit_0/pruner")
    with pytest.raises(GlimpseError, match="is no folder"):
        load_pruner(tmp_path / "nothing")

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(checkpoints, "snapshot_download", offline)
    with pytest.raises(GlimpseError, match=r"could not be fetched.*no network"):
        load_pruner("owner/name")
    folder = save_pruner(pruner(), tmp_path / "pruner")
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda *_, **__: str(folder))
    assert load_pruner("owner/name").facts == FACTS


def test_model_of_another_shape(tmp_path: Path) -> None:
    loaded = load_pruner(save_pruner(pruner(), tmp_path / "pruner"))
    with pytest.raises(GlimpseError, match="hidden_size: 64 != 128"):
        loaded.build(replace(FACTS, hidden_size=128))
    check_facts(replace(FACTS, vision_layers=0), FACTS)  # 0 = unknown


def test_reference_qwen() -> None:
    loaded = load_pruner(GOLDEN / "new_modules" / "main")
    (stage,) = loaded.stages
    assert isinstance(stage, PruneStage)
    assert stage.after_layer == 3
    assert loaded.facts == FACTS
    assert not loaded.training
    vip = stage.scorer
    assert isinstance(vip, VIP)
    assert vip.requires.vision_layers == (3, 2, 1)
    assert vip.requires.probes["glimpse"].layers == (3,)
    assert vip.requires.probes["glimpse"].scale == "logits"
    assert vip.glimpse is not None
    vectors = torch.stack(list(vip.glimpse.eval()().values()))
    torch.testing.assert_close(vectors, tensors("cases/a_single")["glimpse_vectors"], atol=1e-4, rtol=1e-4)
    policy = stage.policy
    assert isinstance(policy, Threshold)
    assert (policy.threshold, policy.max_ratio, policy.min_tokens, list(policy.anchors)) == (0.5, None, 1, [])


def test_reference_llava_counts_vision_states_from_the_embedding() -> None:
    loaded = load_pruner(GOLDEN / "llava" / "new_modules")
    scorer = loaded.stages[0].scorer
    assert isinstance(scorer, VIP)
    assert scorer.requires.vision_layers == (2, 1, 0)
    assert scorer.requires.probes["glimpse"].scale == "log_softmax"
    loaded.build(replace(FACTS, num_kv_heads=4, vision_hidden_size=32, model_type="llava"))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "new_modules" / "main", tmp_path / "main", copy_function=shutil.copyfile))


def edit(folder: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in drop}
    path.write_text(json.dumps(config | fields))


def test_reference_fields(reference: Path, recwarn: pytest.WarningsRecorder) -> None:
    edit(reference, drop=("attn_fuse_global", "reduce_threshold", "min_remain_num", "_attn_implementation_autoset"))
    edit(reference, reduce_layer=1000, max_remain_ratio=0.111, anchor_positions=["tl"], _private=1)
    stage = load_pruner(reference).stages[0]
    assert isinstance(stage, PruneStage)
    assert isinstance(stage.scorer, VIP)
    assert isinstance(stage.policy, Threshold)
    assert stage.after_layer == 5
    assert stage.scorer.window == 2, "class default: windows; 56 pixels are 2 merged tokens"
    assert (stage.policy.threshold, stage.policy.max_ratio, stage.policy.min_tokens) == (0.5, 0.111, 1)
    assert not recwarn.list


def test_reference_unknown_fields_are_listed(reference: Path) -> None:
    edit(reference, zeta=1, alpha=2)
    with pytest.warns(UserWarning, match=r"not understood: \['alpha', 'zeta'\]"):
        load_pruner(reference)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "`model_type`.*to be one of"),
        ({"attn_fuse_type": "AttnFuserV2"}, "`attn_fuse_type`.*to be one of"),
        ({"selected_layers": []}, "`selected_layers`.*at least one layer"),
        ({"attn_fuse_size": 64}, "does not hold the weights"),
        ({"deep_supervision": True}, "does not hold the weights"),
        ({"selected_layers": [4]}, "`attention_layers` to lie between"),
    ],
)
def test_reference_misconfigured(reference: Path, fields: dict[str, Any], message: str) -> None:
    edit(reference, **fields)
    with pytest.raises(GlimpseError, match=message):
        load_pruner(reference)


def test_reference_cut_short(reference: Path) -> None:
    path = reference / "new_modules_gp.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GlimpseError, match="reading it failed"):
        load_pruner(reference)
