"""A server under load: throughput next to direct calls, latency, memory, and answers equal to those alone, as Markdown.

OMP_NUM_THREADS=1 python benchmarks/serving.py > benchmarks/serving.md

The server runs in a process of its own on one core, the clients on another. The direct calls answer the same prompts in
batches of as many as there are clients, in the server's own way (processor, prefill, generate), on the same core.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from openai import OpenAI

import glimpse_lightning as gl
from glimpse_lightning.bench.recipes import pruners
from glimpse_lightning.runtime.machine import device_name
from glimpse_lightning.serving.batcher import greedy

NEW_TOKENS = 16


def conversations(number: int) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Conversations in OpenAI's form and in Hugging Face's."""
    found = []
    pages = gl.GlyphVQA("test", size=number)
    for index in range(number):
        sample, content = pages[index], io.BytesIO()
        sample.images[0].save(content, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
        text = {"type": "text", "text": sample.question}
        found.append(
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}],
                [{"role": "user", "content": [{"type": "image", "image": sample.images[0]}, text]}],
            )
        )
    return found


def direct(recipe: str, asked: list[Any], batch: int) -> tuple[list[str], float]:
    """Answers by direct calls, and requests a second."""
    backbone = gl.load_backbone("glimpse-tiny")
    model = gl.PrunedVLM(backbone, next(pruners([recipe], []))[1]).eval()
    for _ in range(2):  # the first round warms up
        answers: list[str] = []
        began = time.perf_counter()
        for start in range(0, len(asked), batch):
            prompts = [backbone.converse(messages) for _, messages in asked[start : start + batch]]
            out = model.prefill(**backbone.merge(prompts))
            ids = model.generate(out, generation_config=greedy(model.generation_config, NEW_TOKENS))
            answers += backbone.decode(ids)
    return answers, len(asked) / (time.perf_counter() - began)


def resident(process: int) -> int:
    """Bytes of a process in memory."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="attention_rank")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--more", type=int, default=2000, help="requests until memory is read again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = conversations(options.requests)
    os.sched_setaffinity(0, {0})
    expected, rate = direct(options.recipe, asked, options.clients)
    command = [sys.executable, "-m", "glimpse_lightning", "serve", "--backbone", "glimpse-tiny", "--recipe",
               options.recipe, "--port", "0", "--max_batch", str(options.clients)]  # fmt: skip
    server = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stderr is not None
    os.sched_setaffinity(0, {1})
    try:
        line = next(line for line in server.stderr if "running on" in line)
        address = line.partition("running on ")[2].split()[0]
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        seconds: list[float] = []

        def ask(number: int) -> str:
            began = time.perf_counter()
            messages: Any = asked[number % len(asked)][0]
            answer = client.chat.completions.create(model="glimpse-tiny", messages=messages, max_tokens=NEW_TOKENS)
            seconds.append(time.perf_counter() - began)
            return (answer.choices[0].message.content or "").strip()

        with ThreadPoolExecutor(options.clients) as pool:
            list(pool.map(ask, range(2 * options.clients)))  # warm up
            seconds.clear()
            began = time.perf_counter()
            found = list(pool.map(ask, range(options.requests)))
            served = options.requests / (time.perf_counter() - began)
            times = sorted(seconds)
            memory = resident(server.pid)
            list(pool.map(ask, range(options.requests, options.more)))
            later = resident(server.pid)
    finally:
        server.terminate()
        server.wait(30)
    p99, processor = quantiles(times, n=100)[98], device_name(torch.device("cpu"))
    print(f"`python benchmarks/serving.py`: {processor}, a core for the server, one for {options.clients} clients;")
    print(f"glimpse-tiny under `{options.recipe}`, {options.requests} requests of GlyphVQA's test pages.\n")
    print("| figure | value |\n|---|---|")
    print(f"| answers equal to direct calls | {sum(map(str.__eq__, found, expected))} of {len(expected)} |")
    print(f"| requests a second, served | {served:.1f} |")
    print(f"| requests a second, direct calls in batches of {options.clients} | {rate:.1f} |")
    print(f"| ratio | {served / rate:.2f} |")
    print(f"| seconds, median and 99th percentile | {median(times):.2f}, {p99:.2f} (x {p99 / median(times):.1f}) |")
    print(f"| resident memory after request {options.requests} | {memory / 2**20:.0f} MiB |")
    print(f"| after request {options.more} | {later / 2**20:.0f} MiB ({later / memory - 1:+.1%}) |")


if __name__ == "__main__":
    main()
