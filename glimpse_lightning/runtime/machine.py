"""Hardware and software of this machine, for records."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import glimpse_lightning


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit and time."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_gib(device), 1),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "glimpse_lightning": glimpse_lightning.__version__,
            **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        },
        "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's commit, with ``+`` appended if files differ from it; ``None`` for an installed package."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        name = _git(folder, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor and the widest instructions that torch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    if not hasattr(os, "sysconf"):
        return float("nan")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
