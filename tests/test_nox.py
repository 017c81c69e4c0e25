"""The noxfile loads with the pinned nox, and sessions named elsewhere are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *ROOT.glob("CONTRIBUTING.md"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob(".github/*/*.yml"),
]


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    pytest.importorskip("nox")
    command = [sys.executable, "-m", "nox", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"^[*-] ([\w-]+)", listed.stdout, re.MULTILINE))


def test_sessions_that_pages_name_are_there(sessions: set[str]) -> None:
    named = {name for page in PAGES for name in re.findall(r"nox\s+-s\s+([\w-]+)", page.read_text(encoding="utf-8"))}
    assert "processors" in named
    assert named <= sessions
