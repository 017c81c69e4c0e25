"""``golden``: what a method's own code keeps of random tokens, and whether a port keeps the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from golden_numbers import GOLDEN
from safetensors.torch import load_file, save_file
from test_docs import code

from glimpse_lightning.__main__ import main
from glimpse_lightning.goldens.cases import budgets, read

OTHERS = """
import torch


def attended(attention, budget):
    return attention.topk(budget).indices


def one_less(attention, budget):
    return attention.topk(budget - 1).indices


def weighted(scores, features, budget, weight):
    return (scores + weight * features.norm(dim=1)).topk(budget).indices


def by_chance(budget):
    return torch.randperm(20)[:budget]


def by_rounding(features, budget):
    return ((features[:, 0] * 1e9).long() % 997).topk(budget).indices


def asks_too_much(features, weights):
    return [0]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's `their_code.py`, and others' code."""
    (tmp_path / "their_code.py").write_text(code("authors_code.md")[0])
    (tmp_path / "other_code.py").write_text(OTHERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def golden(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["golden", *command.split()])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_port_is_proved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = golden("record their_code.select --output divprune.safetensors", capsys)
    assert status == 0 and "24 selections" in said
    status, said = golden("check divprune.safetensors --config methods/divprune", capsys)
    assert (status, said.splitlines()[-1]) == (
        0,
        "24 of 24 selections of their_code.select are the same in methods/divprune.",
    )
    cases, metadata = read(folder / "divprune.safetensors")
    assert [case.grid for case in cases][::7] == [(8, 8), (24, 24)]
    assert all(sorted(case.kept) == budgets(len(case.inputs["features"])) for case in cases)
    assert set(cases[0].inputs) == {"features", "grid"}
    assert metadata["function"] == "their_code.select" and json.loads(metadata["machine"])["versions"]["torch"]
    assert (folder / "divprune.safetensors").stat().st_size < 200_000


def test_a_difference_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden("record other_code.attended --output one.safetensors --grid 8x8 --seed 3", capsys)
    assert golden("check one.safetensors --config methods/fastervlm", capsys)[0] == 0
    status, said = golden("check one.safetensors --function other_code.one_less", capsys)
    assert status == 1
    assert "case 00 (8 x 8), budget 7: other_code.one_less keeps 6 tokens, recorded are 7, 6 in common" in said
    assert "0 of 3 selections" in said
    file = load_file(folder / "one.safetensors")
    file["00/out/b1/order"] = torch.arange(7)
    save_file(file, folder / "one.safetensors")
    status, said = golden("check one.safetensors --config methods/fastervlm", capsys)
    assert status == 1 and "2 of 3 selections" in said and "budget 7" in said


def test_other_arguments_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = "record other_code.weighted --output two.safetensors --grid 8x8 --grid 24x24 --channels 32"
    assert "`weight` that nothing is given to" in golden(record, capsys)[1]
    assert golden(f"{record} --argument weight=0.5", capsys)[0] == 0
    cases, metadata = read(folder / "two.safetensors")
    assert [case.inputs["features"].shape for case in cases] == [(64, 32), (576, 32)]
    assert metadata["arguments"] == "{weight: 0.5}"
    check = "check two.safetensors --function other_code.weighted --argument weight="
    assert golden(f"{check}0.5", capsys)[0] == 0
    assert golden(f"{check}5", capsys)[0] == 1


def test_stored_scores_take_the_scorers_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden("record other_code.weighted --output zero.safetensors --grid 8x8 --argument weight=0", capsys)
    assert golden("check zero.safetensors --config methods/fastv", capsys)[0] == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("record other_code.by_chance --output x.safetensors", "other tokens for the same inputs a second time"),
        ("record other_code.by_rounding --output x.safetensors --grid 8x8", "rounding decides"),
        ("record other_code.asks_too_much --output x.safetensors", "`weights` that nothing is given to"),
        ("record other_code.nothing --output x.safetensors", "has no attribute 'nothing'"),
        ("record nowhere.select --output x.safetensors", "No module named 'nowhere'"),
        ("record other_code.attended --output x.safetensors --grid 2x2", "at least 15 tokens"),
        ("check missing.safetensors --config methods/fastv", "cannot be read"),
        ("check seen.safetensors", "--config --function is required"),
        ("check seen.safetensors --config methods/divprune --argument a=1", "options of a recipe are set in its file"),
        ("check seen.safetensors --config methods/fastv", "attention of the decoder"),
        ("check seen.safetensors --config methods/hiprune", "attention of two blocks"),
        ("check seen.safetensors --config methods/pyramid_drop", "one prune stage, but it has 3"),
        ("check seen.safetensors --config methods/prumerge", "has no budget"),
        ("check seen.safetensors --config methods/vision_selector", "weights of its own"),
        ("check seen.safetensors --config methods/holov", "same in methods/holov"),
        ("frobnicate", "Expected `golden record` or `golden check`"),
    ],
)
def test_what_cannot_be_done_is_said(
    command: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden("record other_code.attended --output seen.safetensors --grid 8x8", capsys)
    status, said = golden(command, capsys)
    assert status == 1 and message in said
    assert not (folder / "x.safetensors").exists()


def test_files_of_authors_code_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = golden(f"check {GOLDEN / 'methods' / 'divprune.safetensors'} --config methods/divprune", capsys)
    assert status == 0 and re.search(r"(\d\d) of \1 selections", said)
