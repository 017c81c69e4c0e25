"""Every public class and function, and every shelf, shows its use in an example that runs."""

from __future__ import annotations

import doctest
import gc
import inspect
from pathlib import Path

import datasets
import pytest
import torch

import glimpse_lightning as gl

SHELVES = ("metrics", "objectives", "policies", "reducers", "rewards", "scorers")
NAMES = [name for name in gl.__all__ if callable(getattr(gl, name))]
PARTS = {"gl": gl} | {f"gl.{name}": getattr(gl, name) for name in (*NAMES, *SHELVES)}


def example(name: str) -> doctest.DocTest:
    space = {"gl": gl, "torch": torch, "__name__": "examples"}
    return doctest.DocTestParser().get_doctest(inspect.getdoc(PARTS[name]) or "", space, name, None, 0)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for name in PARTS:
        test = example(name)
        assert test.examples, f"{name}: expected an example in its docstring"
        runner.run(test, out=said.append)
    gc.collect()  # classes that examples define are not found as parts by later tests
    assert not runner.failures, "".join(said)
