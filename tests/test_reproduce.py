"""The paper's tables run again, on stand-ins: a plan, runs that go on, a judge, verdicts, and a file to send in."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from loopback_hub import hub
from test_documented_commands import Judge as JudgeHandler
from user_folder import write_hub, write_inputs

import glimpse_lightning as gl
from glimpse_lightning.cli import main
from glimpse_lightning.evaluation.predictions import Prediction
from glimpse_lightning.reproduction import command
from glimpse_lightning.reproduction.measured import judged
from glimpse_lightning.reproduction.report import rows
from glimpse_lightning.reproduction.tables import BACKBONE, PRUNER, TABLES

BASE = "models/Qwen2.5-VL-7B-Instruct"
SMALL = ["--backbone", BASE, "--pruner", "GlimpsePrune", "--dtype", "float32"]
LIMITED = ["--limit", "2", "--data.max_new_tokens", "2", "--data.num_workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a tiny Qwen2.5-VL of 28 layers, data, and a pruner in the reference's layout."""
    root = tmp_path_factory.mktemp("user")
    inputs = root / "folder"
    inputs.mkdir()
    write_inputs(inputs, write_hub(root / "hub"))
    scorer = gl.scorers.VIP([31, 23], [13, 15], attention_dim=32, condition_dim=32, heads=2)
    stage = gl.PruneStage(18, scorer, gl.policies.Threshold(min_tokens=1))
    model = gl.PrunedVLM(gl.load_backbone(str(inputs / BASE)), gl.Pruner([stage]))
    model.save_pretrained(inputs / "ours")
    flags = ["--pruner", str(inputs / "ours"), "--base", str(inputs / BASE), "--output", str(inputs / "GlimpsePrune")]
    assert main(["export", "--format", "upstream", *flags]) == 0
    return inputs


@pytest.fixture
def judge() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def reproduce(*args: str) -> int:
    return main(["reproduce", *args])


def test_free_form_is_run_once_and_judged_later(
    folder: Path, judge: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert reproduce("free_form", *SMALL, *LIMITED, "--yes") == 0
    first = capsys.readouterr().out
    assert "Time: 8 to 16 hours on one GPU" in first and "free at runs/reproduce/free_form" in first
    report = Path("runs/reproduce/free_form/reproduction.json")
    verdicts = {each["key"]: each["verdict"] for each in json.loads(report.read_text())["figures"]}
    assert verdicts == {"full_judge": "not yet run", "judge": "not yet run", "retention": "a rehearsal"}
    assert reproduce("free_form", *SMALL, *LIMITED, "--judge", judge) == 0
    second = capsys.readouterr().out
    assert "Going on with the runs" in second and "Testing" not in second
    record = json.loads(report.read_text())
    measured = {each["key"]: each["measured"] for each in record["figures"]}
    assert measured["judge"] == measured["full_judge"] == 0.5
    assert record["plan"]["backbone"] == {"name": BASE, "revision": None}
    assert (
        "| threshold alone, judge score | 0.764 ± 0.02 | 0.5 | a rehearsal |" in report.with_suffix(".md").read_text()
    )


def test_caps_bound_the_share_of_each_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert reproduce("free_form_capped", *SMALL, *LIMITED, "--yes", "--output", "capped") == 0
    for cap in (0.111, 0.222, 0.333):
        policy = gl.load_pruner(folder / "capped" / "pruners" / f"cap_{cap}").stages[0].policy
        assert isinstance(policy, gl.policies.Threshold) and policy.max_ratio == cap


def test_short_form_and_efficiency(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    copies = ["--data.places.data_dir", "copies", "--data.num_workers", "0", "--data.max_new_tokens", "2"]
    assert reproduce("short_form", *SMALL, *copies, "--limit", "1", "--yes", "--output", "short") == 0
    record = json.loads((folder / "short" / "reproduction.json").read_text())
    assert {each["verdict"] for each in record["figures"]} == {"not published"}
    assert all(each["measured"] is not None for each in record["figures"])
    assert reproduce("efficiency", *SMALL, *copies, "--yes", "--output", "fast") == 0
    record = json.loads((folder / "fast" / "reproduction.json").read_text())
    assert {each["key"] for each in record["figures"] if each["measured"] is None} == set()
    again = record["figures"]
    assert reproduce("efficiency", *SMALL, *copies, "--yes", "--output", "fast") == 0
    assert json.loads((folder / "fast" / "reproduction.json").read_text())["figures"] == again, "nothing is run again"


def test_versions_are_pinned_on_the_hub(folder: Path, tmp_path: Path) -> None:
    """With the published names, on a hub of this machine, in a process of its own."""
    for name, source in ((BACKBONE.name, BASE), (PRUNER.name, "GlimpsePrune")):
        shutil.copytree((folder / source).resolve(), tmp_path / "hub" / name)
    command = ["reproduce", "free_form", "--dtype", "float32", *LIMITED, "--yes", "--output", str(tmp_path / "out")]
    with hub(tmp_path / "hub") as address:
        place = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "glimpse_lightning", *command],
            env=os.environ | place | {"HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["backbone"] == {"name": BACKBONE.name, "revision": BACKBONE.revision}
    assert plan["pruner"] == {"name": PRUNER.name, "revision": "1" * 40}, "the newest, which the results name"
    assert f"{BACKBONE.name} at {BACKBONE.revision}" in (tmp_path / "out" / "reproduction.md").read_text()


def test_a_plan_goes_on_with_the_version_that_it_began_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(command, "_run_once", lambda *_: None)
    monkeypatch.setattr(command, "_figures", lambda *_: {})
    monkeypatch.setattr(command, "write_report", lambda *_: None)
    flags = ["free_form", "--backbone", BASE, "--yes", "--output", str(tmp_path / "out")]
    for newest in ("a" * 40, "b" * 40):
        monkeypatch.setattr(command, "model_info", lambda _, newest=newest: SimpleNamespace(sha=newest))
        assert reproduce(*flags) == 0
        assert json.loads((tmp_path / "out" / "plan.json").read_text())["pruner"]["revision"] == "a" * 40


def test_scores_of_a_judge_that_failed_are_not_taken() -> None:
    def reads(replies: list[float], failed: int) -> Any:
        return SimpleNamespace(many=lambda asked: replies[: len(asked)], counts={"failed": failed})

    answers = [Prediction("visual_cot/cub", name, "q", ["a"], "a", full_prediction="a") for name in "xy"]
    assert judged(answers, reads([1.0, 0.5], 0)) == {"judge": 0.75, "full_judge": 0.75}
    assert judged(answers, reads([1.0, math.nan], 1)) == {}


def test_verdicts() -> None:
    table = TABLES["free_form"]
    found = {"threshold": {"full_judge": 0.75, "judge": 0.7, "retention": 0.18}}
    assert [row.verdict for row in rows(table, found, ["--data.places.img_dir", "x"])] == ["pass", "fail", "pass"]
    assert {row.verdict for row in rows(table, found, ["--limit", "5"])} == {"a rehearsal"}
    assert {row.verdict for row in rows(table, {"threshold": {}}, [])} == {"not yet run"}


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", StringIO("y"))

    def said(*args: str) -> str:
        assert reproduce(*args) == 1
        return " ".join(capsys.readouterr().err.split())

    assert "Nothing was begun. Repeat the command with --yes" in said("free_form", *SMALL, "--output", "asked")
    assert "there is no option --judg" in said("free_form", *SMALL, "--judg", "x").lower()
    assert "free_from" in said("free_from")
    assert reproduce("free_form", *SMALL, *LIMITED, "--yes", "--output", "mine") == 0
    assert "holds runs of another plan (`options`" in said(
        "free_form", *SMALL, "--limit", "1", "--yes", "--output", "mine"
    )
