"""The Markdown of measured training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTE = """\
`gain`: median over rounds of (seconds of the straightforward way / ours in the same round), with its 95 % interval.
`predicted`: the same ratio of FLOPs, by counting. `counted`: the ratio of the FLOPs that both ways ran. The
straightforward way: docs/bench.md.
"""
HEADER = (
    "K", "(K+1)/L", "step", "vision tower", "ours (ms)", "straightforward (ms)", "gain", "predicted", "counted",
    "gain / predicted", "peak ours (MiB)", "peak straightforward (MiB)", "memory ratio",
)  # fmt: skip


def lines(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for each batch size and number of visual tokens, all K in it."""
    out, title = [NOTE], ""
    for group in groups:
        mine = (
            f"## Batch {group['batch']}, {group['visual_tokens']} visual + {group['text_tokens']} text tokens, answers "
            f"of {group['answer_tokens']}"
        )
        if mine != title:
            out += ["", mine, "", _line(HEADER), _line(["---"] * len(HEADER))]
            title = mine
        if "left_out" in group:
            out.append(_line([str(group["after_layer"]), f"{group['depth']:.3f}", f"left out: {group['left_out']}"]))
        out += [_line(_cells(group, row)) for row in group.get("rows", ())]
    return [*out, ""]


def _cells(group: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    gain, seconds, peak, flops = row["gain"], row["seconds"], row["peak_bytes"], row["flops"]
    return [
        str(group["after_layer"]), f"{group['depth']:.3f}", row["step"], "in" if row["vision_tower"] else "out",
        f"{seconds['ours']['median'] * 1e3:,.4g}", f"{seconds['straightforward']['median'] * 1e3:,.4g}",
        f"{gain['value']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]", f"{row['predicted_gain']:.2f}",
        f"{flops['straightforward'] / flops['ours']:.2f}", f"{row['gain_to_predicted']:.2f}",
        f"{peak['ours'] / 2**20:,.4g}", f"{peak['straightforward'] / 2**20:,.4g}", f"{row['memory_ratio']:.2f}",
    ]  # fmt: skip


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join([*columns, *[''] * (len(HEADER) - len(columns))])} |"
