"""Everything that a GPU has to prove about this package, in one command of some eight minutes.

    python benchmarks/gpu.py --output gpu                 # where the package and its test extra are installed
    python benchmarks/gpu.py --output gpu --wheels .whl   # on a machine that has torch, and no network
    python benchmarks/gpu.py --download .whl              # fetches those wheels, on one that has
    python benchmarks/gpu.py --output gpu --rehearse      # the same parts in tiny shapes on a CPU

Headline figures come first. ``gpu.json`` and ``gpu.md`` in the output folder are written anew as soon as a part is
done; no failure stops what follows, and a part that takes too long is given up. Parts run one by one, in a process that
keeps the model; then README's main job and ``pytest -m gpu`` run at the same time. What each part measures:
``benchmarks/gpu_parts.py``.

This file itself needs nothing but Python: it has to run before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS = (
    "jsonargparse==4.53.0", "omegaconf==2.4.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19",
    "rapidfuzz==3.14.6", "typeshed_client==2.14.0", "docstring_parser==0.18.0", "transformers==5.23.0",
)  # fmt: skip
"""What a machine with torch, Lightning, PEFT and pytest may lack, with their lower bounds met; 17 MB."""

MARK = "@@ "
"""Begin of a line in which the measuring process reports."""

NAMES = ("article", "equality", "prefill", "decoding", "scoring", "training", "main_job", "tests")
START, JOBS = 100, 200
"""Seconds for imports and loading, and for main job and tests together."""

SHORT = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.fit_test_size", "2")
SHORT += ("--trainer.limit_val_batches", "1", "--model.baselines", "[]", "--trainer.accelerator", "cpu")
SHORT += ("--data.eval_batch_size", "2", "--data.batch_size", "4", "--model.fit_baselines", "[]")


def main(args: Sequence[str] | None = None) -> int:
    """The exit status: 0 where every part has ended without an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, help="folder for gpu.json, gpu.md and logs")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, into a folder of their own")
    parser.add_argument("--download", type=Path, help="fetch those wheels into a folder, for --python, and end")
    parser.add_argument("--python", default="3.12", help="version that --download fetches for")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--parts", default=",".join(NAMES), help="which to run, in this order")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which nothing more is begun")
    parser.add_argument("--commit", help="for the record, where the checkout's .git is not there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # the measuring process
    options = parser.parse_args(args)
    if options.download is not None:
        return download(options.download, options.python)
    parts = [part for part in options.parts.split(",") if part]
    for part in parts:
        if part not in NAMES:
            parser.error(f"there is no part {part!r}; parts: {', '.join(NAMES)}")
    if options.measure:
        return measure(parts, options)
    if options.output is None:
        parser.error("--output is missing: the folder for gpu.json, gpu.md and logs")
    options.output.mkdir(parents=True, exist_ok=True)
    return Run(options, parts).run()


def download(folder: Path, python: str) -> int:
    """Fetch the wheels of :data:`WHEELS` for a Linux x86-64 machine with the given Python."""
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    tags = [f"--platform={name}_x86_64" for name in platforms] + ["--platform=any"]
    abis = [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    wanted = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *abis, *tags]
    return subprocess.call([sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(folder), *WHEELS])


class Run:
    """One run of the command.

    Attributes:
        record: all that is known so far, in the form of ``bench``'s record, and ``parts`` by name.
        env: environment variables of each process that is started.
    """

    def __init__(self, options: argparse.Namespace, parts: Sequence[str]) -> None:
        self.options, self.parts = options, list(parts)
        self.begin = time.monotonic()
        self.runs = Path(tempfile.mkdtemp(prefix="runs_"))
        self.record: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "parts": {}}
        self.log = (options.output / "log.txt").open("w", encoding="utf-8", buffering=1)
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def run(self) -> int:
        """Install, measure, then the jobs."""
        if self.options.wheels is not None:
            self.done("install", self.attempt(self.install))
        self.measure([part for part in self.parts if part not in ("main_job", "tests")])
        jobs = [part for part in self.parts if part in ("main_job", "tests")]
        running = {name: self.start(name) for name in jobs if self.left() > 0}
        for name in jobs:
            self.done(name, self.finish(name, *running[name]) if name in running else {"error": "no time was left"})
        self.say(f"{self.elapsed():.0f} s in all; written: {self.options.output / 'gpu.md'}")
        failed = [name for name, part in self.record["parts"].items() if "error" in part]
        self.say(f"failed: {', '.join(failed) or 'nothing'}")
        return 1 if failed else 0

    # -- installing -------------------------------------------------------------------------------------------------

    def install(self) -> dict[str, Any]:
        """Put the wheels into a folder of their own, with links to the checkout, which is not installed."""
        site = Path(tempfile.mkdtemp(prefix="site_"))
        wheels = sorted(map(str, self.options.wheels.glob("*.whl")))
        quiet = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
        subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *wheels], check=True, timeout=120)
        package = site / "glimpse_lightning"
        package.mkdir()
        for item in (*(ROOT / "glimpse_lightning").iterdir(), ROOT / "recipes", ROOT / "callbacks"):
            if item.name != "__pycache__":
                (package / item.name).symlink_to(item)
        # Without the current folder in front, where the package lies without its recipes.
        self.env |= {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "benchmarks")]), "PYTHONSAFEPATH": "1"}
        sys.path.insert(0, str(site))
        return {"note": f"{len(wheels)} wheels"}

    # -- measuring --------------------------------------------------------------------------------------------------

    def measure(self, parts: Sequence[str]) -> None:
        """Run the parts in one process, or in a new one after each that hangs or breaks it."""
        waiting = list(parts)
        while waiting:
            if self.left() <= 0:
                for part in waiting:
                    self.done(part, {"error": "no time was left"})
                return
            self.follow(self.measuring(waiting), waiting)

    def measuring(self, parts: Sequence[str]) -> list[str]:
        """The command of the process that measures."""
        command = [sys.executable, str(Path(__file__)), "--measure", "--parts", ",".join(parts)]
        command += ["--rehearse"] if self.options.rehearse else []
        return command + (["--commit", self.options.commit] if self.options.commit else [])

    def follow(self, command: list[str], waiting: list[str]) -> None:
        """Read what the measuring process reports, until it has ended or has to be ended; takes what is done from
        ``waiting``.
        """
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.env, start_new_session=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        begin, limit, last = time.monotonic(), float(START), ""
        try:
            while waiting:
                try:
                    line = lines.get(timeout=max(0.1, min(begin + limit, self.deadline()) - time.monotonic()))
                except queue.Empty:
                    error = f"given up after {time.monotonic() - begin:.0f} s (limit {limit:.0f} s)"
                    self.done(waiting.pop(0), {"error": error, "seconds": time.monotonic() - begin})
                    return
                if line is None:
                    error = f"the process ended with status {process.wait()}: {last}"
                    self.done(waiting.pop(0), {"error": error, "seconds": time.monotonic() - begin})
                    return
                if not line.startswith(MARK):
                    last = line.strip() or last
                    self.say(line.rstrip())
                    continue
                event = json.loads(line.removeprefix(MARK))
                if "record" in event:
                    self.record = {**event["record"], "command": self.record["command"], "parts": self.record["parts"]}
                elif "begin" in event:
                    begin, limit = time.monotonic(), event["limit"]
                    self.say(f"[{self.elapsed():.0f} s] {event['begin']}")
                else:
                    waiting.remove(event["end"])
                    self.done(event["end"], event["result"])
        finally:
            _end(process)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def start(self, name: str) -> tuple[subprocess.Popen[bytes], Path, float]:
        """Begin README's main job, or the tests that need a GPU."""
        log = self.options.output.resolve() / f"{name}.log"
        python, rehearse = sys.executable, self.options.rehearse
        if name == "tests":
            command = [python, "-m", "pytest", "-m", "gpu", "-rfE", "--junitxml", str(log.with_suffix(".xml"))]
            command += ["--collect-only", "-q"] if rehearse else ["-n", "4"]
        else:
            command = [python, "-m", "glimpse_lightning", "fit", "--config", "vip_kl"]
            command += ["--trainer.default_root_dir", str(self.runs), *(SHORT if rehearse else ())]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=self.env, cwd=ROOT, start_new_session=True
            )
        return process, log, time.monotonic()

    def finish(self, name: str, process: subprocess.Popen[bytes], log: Path, begin: float) -> dict[str, Any]:
        """What a job came to."""
        try:
            status = process.wait(timeout=max(1.0, min(begin + JOBS, self.deadline()) - time.monotonic()))
            error = None if status == 0 else f"status {status}"
        except subprocess.TimeoutExpired:
            error = "no time was left"
        finally:
            _end(process)
        text = log.read_text(encoding="utf-8", errors="replace")
        shown = text[text.find("short test summary") :] if name == "tests" and "short test summary" in text else text
        tail = "\n".join(shown.rstrip().splitlines()[-40:])
        found: dict[str, Any] = {"note": f"```text\n{tail}\n```", "seconds": time.monotonic() - begin}
        for path in self.runs.rglob("results.json") if name == "main_job" else ():
            result = json.loads(path.read_text(encoding="utf-8"))
            shown = ("relative_accuracy", "retention", "random_relative_accuracy")
            about = {key: result[key] for key in ("processor", "precision", "wall_time_s", "steps", "n")}
            found["rows"] = [about | {key: result["metrics"].get(key) for key in shown}]
        return found if error is None else {**found, "error": error}

    # -- writing ----------------------------------------------------------------------------------------------------

    def attempt(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` comes to, or why it does not."""
        begin = time.monotonic()
        try:
            found = work()
        except Exception:
            found = {"error": traceback.format_exc()}
        return {"seconds": time.monotonic() - begin, **found}

    def done(self, part: str, result: dict[str, Any]) -> None:
        """Remember what a part came to, and write everything."""
        self.record["parts"][part] = {"seconds": 0.0, **result}
        self.say(f"[{self.elapsed():.0f} s] {part}: {result.get('error', 'done').strip().splitlines()[-1]}")
        text = json.dumps(self.record, indent=1)
        (self.options.output / "gpu.json").write_text(text + "\n", encoding="utf-8")
        if "machine" not in self.record:
            return
        try:
            from gpu_report import markdown  # not before everything is installed

            (self.options.output / "gpu.md").write_text(markdown(self.record) + "\n", encoding="utf-8")
        except Exception:
            self.say(traceback.format_exc())  # what has been measured is in gpu.json

    def say(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=self.log)

    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    def deadline(self) -> float:
        return self.begin + self.options.limit

    def left(self) -> float:
        return self.deadline() - time.monotonic()


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# -- the measuring process -------------------------------------------------------------------------------------------


def measure(parts: Sequence[str], options: argparse.Namespace) -> int:
    """Run parts one by one, and report each; ends at once where a CUDA error has broken the process."""
    import gpu_parts
    import torch

    scale = gpu_parts.SCALES["rehearsal" if options.rehearse else "gpu"]
    bench = gpu_parts.Bench(scale, lambda text: print(text, flush=True))
    _report({"record": gpu_parts.record(bench, "", options.commit)})
    for part in parts:
        work, limit = gpu_parts.PARTS[part]
        _report({"begin": part, "limit": limit})
        begin = time.monotonic()
        try:
            result = work(bench)
        except Exception:
            result = {"error": traceback.format_exc()}
        _report({"end": part, "result": {**result, "seconds": time.monotonic() - begin}})
        if "error" in result and bench.clock.cuda:
            torch.cuda.synchronize()  # raises where the device can no longer be used
    return 0


def _report(event: dict[str, Any]) -> None:
    print(MARK + json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())
