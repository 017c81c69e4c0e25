"""Table and reward curves of `vip_grpo` against `vip_sft`, from finished runs.

python benchmarks/grpo.py --grpo runs/g_*/vip_grpo/fit_0 --sft runs/s_*/vip_sft/fit_0 --output docs/images/grpo.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WINDOW = 5
"""Logged points that a curve is averaged over."""
CURVES = {
    "train/reward/exact_match": "rollouts that are right",
    "train/hard_retention": "visual tokens kept",
    "train/price": "price of all tokens",
    "train/reward": "mean reward, price included",
    "train/entropy": "entropy of a token (nats)",
    "train/kl": "KL to the reference (nats)",
}
"""What is drawn, by tag."""


def curve(run: Path, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and running means of what a run logged under ``tag``."""
    points: dict[int, float] = {}
    for file in sorted(run.glob("events*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(tag)}
    steps, values = np.array(sorted(points)), np.array([points[step] for step in sorted(points)])
    kernel = np.ones(WINDOW) / WINDOW
    return steps[WINDOW - 1 :], np.convolve(values, kernel, "valid")


def row(name: str, runs: list[Path]) -> str:
    """Mean and standard deviation over seeds of accuracy, of that of the same weights unpruned, and of retention."""
    metrics = [json.loads((run / "results.json").read_text())["metrics"] for run in runs]
    columns = []
    for key in ("accuracy", "full_accuracy", "retention"):
        values = [100 * found[key] for found in metrics]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        columns.append(f"{mean(values):.1f}{spread} ({', '.join(f'{value:.1f}' for value in values)})")
    return f"| {name} | {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grpo", nargs="+", type=Path, required=True)
    parser.add_argument("--sft", nargs="+", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    print("| trained by | accuracy | the same weights, unpruned | retention |\n|---|---|---|---|")
    print(row("GRPO", given.grpo))
    print(row("supervised", given.sft))
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    for axes, (tag, label) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for run in given.grpo:
            axes.plot(*curve(run, tag), linewidth=1)
        axes.set(xlabel="step", title=label)
        axes.grid(alpha=0.3)
    figure.savefig(given.output, dpi=120)


if __name__ == "__main__":
    main()
