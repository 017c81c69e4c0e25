"""What `auto` stands for: by the device, and on a CPU by what a matrix product takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from halves import attends_in_bfloat16
from runs import run, write_recipe
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.load import auto_dtype, saved_dtype
from glimpse_lightning.cli import precision
from glimpse_lightning.cli.recipe_check import check
from glimpse_lightning.runtime import dtypes

FAST, SLOW = 0.3, 20.0


@pytest.fixture(params=[FAST, SLOW], ids=["fast", "slow"])
def cost(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """A processor on which half precision costs this much."""
    monkeypatch.setattr(dtypes, "cost_on_cpu", lambda dtype: request.param)
    monkeypatch.setattr(precision, "cost_on_cpu", lambda dtype: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return request.param


def configuration(**values: Any) -> Any:
    """As the parser gives it."""
    trainer = {name: values.pop(name, default) for name, default in {"accelerator": "auto", "precision": None}.items()}

    class Model(dict):  # as jsonargparse's Namespace
        __getattr__ = dict.get

    return SimpleNamespace(trainer=SimpleNamespace(**trainer), model=Model({"backbone": "glimpse-tiny", **values}))


def test_auto_follows_the_processor(cost: float) -> None:
    config = configuration(precision="auto", dtype="auto")
    precision.settle(config)
    assert config.trainer.precision == ("bf16-mixed" if cost == FAST else "32-true")
    assert config.model["dtype"] == ("bfloat16" if cost == FAST else "float32")
    backbone = gl.load_backbone("glimpse-tiny", dtype="auto")
    assert backbone.model.dtype == (torch.bfloat16 if cost == FAST else torch.float32)
    assert auto_dtype("random:qwen2.5-vl-7b", "cpu") == backbone.model.dtype


def test_explicit_values_are_obeyed_and_warned_about_where_they_are_slow(cost: float) -> None:
    config = configuration(precision="bf16-mixed", dtype="bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        precision.settle(config)
        backbone = gl.load_backbone("glimpse-tiny", dtype="bfloat16")
    assert (config.trainer.precision, config.model["dtype"]) == ("bf16-mixed", "bfloat16")
    assert backbone.model.dtype == torch.bfloat16
    said = [str(warning.message) for warning in caught if "slow on this cpu" in str(warning.message)]
    assert len(said) == (0 if cost == FAST else 2)
    if said:
        assert "`trainer.precision` asks for bfloat16" in said[0] and "20 times float32's" in said[0]
        assert "`dtype` asks for bfloat16" in said[1] and "(`--model.dtype auto`) avoids it" in said[1]


def test_weights_that_nobody_asked_for_in_half_precision_are_warned_about_once(cost: float, tmp_path: Path) -> None:
    folder = tmp_path / "halves"
    backbone = gl.load_backbone("glimpse-tiny", dtype="float16" if cost == FAST else "bfloat16")
    backbone.unwrap().save_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for device in ("meta", None):  # a recipe's pruner is built on the first
            gl.load_backbone(str(folder), dtype=None, device_map=device)
    said = [str(warning.message) for warning in caught if "slow on this cpu" in str(warning.message)]
    assert len(said) == (0 if cost == FAST else 1)
    assert not said or f"The weights of '{folder}' are stored in bfloat16" in said[0]


def test_nothing_is_changed_or_warned_about_without_half_precision(cost: float) -> None:
    for given in (None, "32-true", "64-true", 32):
        config = configuration(precision=given, dtype="float32")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            precision.settle(config)
        assert (config.trainer.precision, config.model["dtype"]) == (given, "float32")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_cuda_is_asked(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    for accelerator in ("auto", "gpu", "cuda"):
        config = configuration(accelerator=accelerator, precision="auto")
        precision.settle(config)
        assert config.trainer.precision == expected
    monkeypatch.setattr(dtypes, "cost_on_cpu", lambda dtype: SLOW)
    config = configuration(accelerator="cpu", precision="auto")
    precision.settle(config)
    assert config.trainer.precision == "32-true"


def test_a_mac_computes_on_its_processor(cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    config = configuration(precision="auto")
    precision.settle(config)
    assert config.trainer.accelerator == "cpu"


def test_half_precision_that_fails_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's attention does where ATen may not use AVX-512 and oneDNN has AMX."""

    def fails(*_: Any) -> None:
        raise RuntimeError("pack_vnni2 is only supported when avx512 is supported")

    monkeypatch.setattr(dtypes.F, "scaled_dot_product_attention", fails)
    monkeypatch.setattr(dtypes, "cost_on_cpu", dtypes.cost_on_cpu.__wrapped__)
    assert dtypes.cost_on_cpu(torch.bfloat16) == math.inf
    assert dtypes.fast_dtype("cpu") == torch.float32
    assert precision.auto_precision("cpu") == "32-true"


def test_saved_types() -> None:
    assert saved_dtype("glimpse-tiny") == torch.bfloat16
    with pytest.raises(gl.GlimpseError, match="Could not load backbone 'no/such'"):
        saved_dtype("no/such")


@pytest.mark.parametrize("isa", ["AVX2", pytest.param("DEFAULT", marks=pytest.mark.slow)])
def test_what_the_libraries_may_use_decides_not_what_the_processor_has(isa: str) -> None:
    """oneDNN without AVX-512 has no product in bfloat16, whatever the processor could do."""
    ask = "import torch; from glimpse_lightning.runtime.dtypes import cost_on_cpu as cost; "
    ask += "print(cost(torch.bfloat16), cost(torch.float))"
    environment = {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    half, same = map(float, done.stdout.split())
    assert 0.1 < same < 10
    if isa == "AVX2":
        assert half > dtypes.SLOW


@attends_in_bfloat16
def test_what_was_chosen_is_printed_and_saved(cost: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", "--trainer.precision", "auto", "--model.dtype", "auto",
               "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--data.fit_test_size", "1",
               "--model.fit_baselines", "[]") == 0  # fmt: skip
    folder = tmp_path / "runs/small/fit_0"
    results = json.loads((folder / "results.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    expected = ("bf16-mixed", "bfloat16") if cost == FAST else ("32-true", "float32")
    assert (results["precision"], results["dtype"]) == expected
    assert (config["trainer"]["precision"], config["model"]["dtype"]) == expected
    assert torch.backends.cpu.get_cpu_capability() in results["processor"]
    assert f"Precision: {expected[0]} on cpu" in caplog.text
    assert f"{cost:.2g} times float32's" in caplog.text


def test_recipes_of_the_embedded_model_name_no_half_precision(cost: float) -> None:
    root = Path(gl.__file__).parents[1] / "recipes"
    paths = [path for path in sorted([*root.glob("*.yaml"), *root.glob("methods/*.yaml")]) if "vip" in path.stem]
    assert len(paths) > 3
    for path in paths:
        text = path.read_text()
        assert "bf16" not in text.replace("auto  # bf16-mixed where", "") and "bfloat16" not in text, path
    chosen = {found.config["trainer"]["precision"] for found in check("fit", paths[-1:])}
    assert chosen <= {"bf16-mixed" if cost == FAST else "32-true", None}


@pytest.mark.parametrize(("mixed", "saved"), [("bf16-mixed", "float16"), ("16-mixed", "bfloat16")])
def test_two_kinds_of_half_precision_are_not_mixed(tmp_path: Path, mixed: str, saved: str) -> None:
    """torch fails on one of them under the autocast of the other: LLaVA's weights, for example, are float16."""
    FAMILIES["llava"]().to(getattr(torch, saved)).save_pretrained(tmp_path)
    half = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}[mixed]
    for asked, expected in ((None, half), ("float32", "float32"), (half, half)):
        config = configuration(precision=mixed, backbone=str(tmp_path), dtype=asked)
        precision.settle(config)
        assert config.model["dtype"] == expected
    config = configuration(precision=mixed, backbone=str(tmp_path), dtype=saved)
    with pytest.raises(gl.GlimpseError, match=f"`model.dtype: {saved}` and .*`model.dtype: {half}`, or leave it out"):
        precision.settle(config)
    for plain in (None, "32-true"):  # with which the weights may stay as they are
        config = configuration(precision=plain, backbone=str(tmp_path))
        precision.settle(config)
        assert config.model.get("dtype") is None
