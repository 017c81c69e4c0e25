"""Order of methods on sparse and on dense pages, next to a published one, as Markdown.

python benchmarks/regimes.py SPARSE.csv DENSE.csv

Both files are ``results.csv`` of ``ablations/methods``; the share is 11 %. Published: Qwen2.5-VL-3B at 10 %, mean over
11 tasks, in percent of the full model's (AngelSlim's table). Rank correlation is Spearman's, over the methods of the
published table.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

PUBLISHED = {
    "scope": 79.4, "divprune": 75.5, "dart": 74.1, "vispruner": 73.2, "hiprune": 73.0, "visionzip": 72.8, "fastv": 65.3,
}  # fmt: skip
SHARE = "0.11"


def accuracies(path: Path) -> dict[str, float]:
    """Accuracy at the share, by method."""
    with path.open(encoding="utf-8") as file:
        return {
            row["methods"]: float(row["value"])
            for row in csv.DictReader(file)
            if (row["retention"], row["family"], row["metric"]) == (SHARE, "all", "accuracy")
        }


def spearman(one: list[float], other: list[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""
    ranks = [_ranks(np.asarray(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + (values == value).sum() / 2 for value in values])


def main(sparse: str, dense: str) -> None:
    """Print the table."""
    found = {"sparse": accuracies(Path(sparse)), "dense": accuracies(Path(dense))}
    print("| method | published | sparse pages | dense pages |\n|---|---|---|---|")
    for method, value in PUBLISHED.items():
        print(f"| {method} | {value} % | " + " | ".join(f"{each[method]:.1%}" for each in found.values()) + " |")
    correlations = [
        spearman(list(PUBLISHED.values()), [each[method] for method in PUBLISHED]) for each in found.values()
    ]
    shown = " | ".join(f"{value:+.2f}" for value in correlations)
    print(f"| rank correlation with the published order | | {shown} |")


if __name__ == "__main__":
    main(*sys.argv[1:3])
