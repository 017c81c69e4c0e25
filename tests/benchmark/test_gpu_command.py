"""The command that a GPU is measured with: a rehearsal of all of it, and what it does where something fails."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import PRETENDED, entered, glimpse_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPORTED = {  # what the report shows of each part
    "article": ["article", "| decoder's prefill | 0.691 |"],
    "equality": ["| 16 | keep-all |"],
    "prefill": ["K=-1 r=0.11"],
    "decoding": ["decoding, batch 2"],
    "scoring": ["VIP", "AttentionRank"],
    "training": ["| kl | 36 |", "| mask | 36 |", "| grpo | 36 |"],
}
MEASURES = list(REPORTED)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_measurement_on_a_cpu(gpu: Any, tmp_path: Path) -> None:
    """By a process that measures; the slow test starts all of the command."""
    assert gpu.main(["--rehearse", "--output", str(tmp_path), "--limit", "280", "--parts", "equality"]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == ["equality"] and "error" not in parts["equality"]
    assert all(row["difference"] == 0 for row in parts["equality"]["rows"])
    assert "## Goals" in (tmp_path / "gpu.md").read_text()
    assert len(list(tmp_path.iterdir())) <= 8


def test_the_main_job_is_recorded_with_its_results(gpu: Any, tmp_path: Path) -> None:
    """Its command is README's, with fewer steps: the slow test runs it."""
    run = gpu.Run(argparse.Namespace(output=tmp_path, wheels=None, rehearse=True, commit=None, limit=100.0), [])
    about = {"processor": "p", "precision": "32-true", "wall_time_s": 1.5, "steps": 2, "n": 3}
    results = {**about, "recipe": "vip_kl", "metrics": {"retention": 0.1, "accuracy": 0.5}}
    (run.runs / "results.json").write_text(json.dumps(results))
    (tmp_path / "main_job.log").write_text("said")
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True)
    found = run.finish("main_job", process, tmp_path / "main_job.log", time.monotonic())
    figures = {"relative_accuracy": None, "retention": 0.1, "random_relative_accuracy": None}
    assert (found["rows"], found["note"]) == ([about | figures], "```text\nsaid\n```")
    assert "error" not in found


@pytest.mark.slow
def test_the_whole_command_on_a_cpu(tmp_path: Path) -> None:
    """By default each part runs on a pretended GPU, below, and the command with one of them, above."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--output", str(tmp_path), "--limit", "280"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == [*MEASURES, "main_job", "tests"]
    assert not any("error" in part or part.get("rows") == [] for part in parts.values())
    assert not [row["note"] for name in MEASURES for row in parts[name].get("rows", []) if "note" in row]
    assert all(row["difference"] == 0 for row in parts["equality"]["rows"])
    scorers = [row["scorer"] for row in parts["scoring"]["rows"]]
    assert {"VIP", "AttentionRank", "VisionSelector", "Oracle", "Random"} <= set(scorers)
    assert [row["step"] for row in parts["training"]["rows"]] == ["kl", "mask", "grpo"]
    assert {group["visual_tokens"] for group in parts["prefill"]["groups"]} == {48}
    assert parts["main_job"]["rows"][0]["steps"] == 2
    text = (tmp_path / "gpu.md").read_text()
    for expected in ("## Goals", "article", " tests collected", "| decoder's prefill | 0.691 |", "K=-1 r=0.11"):
        assert expected in text
    assert len(list(tmp_path.iterdir())) <= 8


class _Event:
    """Stands in for a CUDA event."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return (end.at - self.at) * 1e3


@pytest.mark.parametrize("part", MEASURES)
def test_parts_on_a_pretended_gpu(part: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they do on CUDA alone, too: events, the allocator's peaks, and waits of the host."""
    import gpu_parts
    from gpu_report import markdown

    monkeypatch.setattr(torch.cuda, "Event", _Event)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name, size in (("memory_allocated", 1), ("max_memory_allocated", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size)
    rounds = gpu_parts.Bench.rounds  # of which one is enough here, and one before it to warm up
    monkeypatch.setattr(gpu_parts.Bench, "rounds", lambda self, runs, _: rounds(self, runs, 1))
    scale = gpu_parts.SCALES["rehearsal"]
    with entered(PRETENDED):
        bench = gpu_parts.Bench(replace(scale, base=replace(scale.base, device="cuda"), rounds=1), lambda _: None)
        bench.backbone = glimpse_tiny()
        found = gpu_parts.PARTS[part][0](bench)
    rows = found.get("rows", [])
    assert rows or found["groups"]
    assert not [row["note"] for row in rows if "note" in row]
    if part == "scoring":
        assert {row["host waits"] for row in rows} == {0}
    record = {**gpu_parts.record(bench, "", None), "parts": {part: {"seconds": 0.0, **found}}}
    text = markdown(json.loads(json.dumps(record)))
    for expected in REPORTED[part]:
        assert expected in text


SCRIPT = """\
import json, sys, time
def report(**event): print("@@ " + json.dumps(event), flush=True)
for part in sys.argv[1].split(","):
    report(begin=part, limit={limit})
    if part == "hangs": time.sleep(60)
    if part == "breaks": print("illegal memory access", flush=True); sys.exit(3)
    if part == "fails": report(end=part, result={{"error": "Traceback\\nValueError: no"}})
    else: report(end=part, result={{"rows": [{{"n": 1}}]}})
"""


def run_of(gpu: Any, folder: Path, parts: list[str], limit: float = 100.0) -> dict[str, Any]:
    class Run(gpu.Run):
        def measuring(self, parts: Sequence[str]) -> list[str]:
            return [sys.executable, "-c", SCRIPT.format(limit=1.0), ",".join(parts)]

    options = argparse.Namespace(output=folder, wheels=None, rehearse=True, commit=None, limit=limit)
    assert Run(options, parts).run() == (1 if {"hangs", "breaks", "fails"} & {*parts} else 0)
    return json.loads((folder / "gpu.json").read_text())["parts"]


def test_no_failure_stops_what_follows(gpu: Any, tmp_path: Path) -> None:
    parts = run_of(gpu, tmp_path, ["good", "hangs", "breaks", "fails", "fine"])
    assert list(parts) == ["good", "hangs", "breaks", "fails", "fine"]
    assert parts["good"]["rows"] == parts["fine"]["rows"] == [{"n": 1}]
    assert parts["hangs"]["error"].startswith("given up after 1 s")
    assert parts["breaks"]["error"] == "the process ended with status 3: illegal memory access"
    assert parts["fails"]["error"].endswith("ValueError: no")


def test_nothing_is_begun_when_time_is_up(gpu: Any, tmp_path: Path) -> None:
    parts = run_of(gpu, tmp_path, ["hangs", "good"], limit=0.5)
    assert parts["hangs"]["error"].startswith("given up")
    assert parts["good"]["error"] == "no time was left"


def test_an_unknown_part_is_named(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--output", "x", "--parts", "artikel"])
    assert "there is no part 'artikel'; parts: article" in capsys.readouterr().err
