"""How few tokens keep the full model's answers, and what it answers without any, by family and layer, as Markdown.

python -m glimpse_lightning ablate --config recipes/ablations/oracle.yaml
python benchmarks/oracle_curve.py runs/ablations/oracle/results.csv > benchmarks/dense/oracle.md
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

KEPT = 0.9
"""Share of the full model's answers that counts as keeping them."""

Curve = dict[float, float]
"""Agreement with the full model, by the share of tokens that the oracle keeps; at 0 that without any."""


def read(path: Path) -> tuple[dict[tuple[str, int], Curve], dict[str, float]]:
    """Curves by family and layer, and the full model's accuracy by family."""
    curves: dict[tuple[str, int], Curve] = defaultdict(dict)
    full: dict[str, float] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "agreement" and row["layer"]:
                curves[row["family"], int(row["layer"])][float(row["retention"] or 0)] = float(row["value"])
            if row["metric"] == "accuracy" and row["methods"] == "full":
                full[row["family"]] = float(row["value"])
    return curves, full


def smallest(curve: Curve) -> str:
    """The smallest share from which on the answers are kept."""
    enough = "-"
    for share in sorted(curve, reverse=True):
        if curve[share] < KEPT:
            break
        enough = f"{share:.0%}"
    return enough


def table(curves: dict[tuple[str, int], Curve], full: dict[str, float], cell: Callable[[Curve], str]) -> str:
    """A line for each family and a column for each layer."""
    layers = sorted({layer for _, layer in curves})
    names = ["before the decoder" if layer < 0 else f"after {layer}" for layer in layers]
    lines = [f"| family | full model | {' | '.join(names)} |", f"|---|---|{'---|' * len(layers)}"]
    for family in sorted(full, key=lambda name: (name == "all", name)):
        cells = [cell(curves[family, layer]) for layer in layers]
        lines.append(f"| {family} | {full[family]:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.csv of the ablation")
    curves, full = read(parser.parse_args().results)
    print(f"Smallest share of the tokens at which {KEPT:.0%} of the full model's answers stay, oracle:\n")
    print(table(curves, full, smallest))
    print("\nAnswers that stay without any visual token after the layer:\n")
    print(table(curves, full, lambda curve: f"{curve[0]:.0%}"))


if __name__ == "__main__":
    main()
