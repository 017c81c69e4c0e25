"""A benchmark's Markdown: a summary of every group, and below it all figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glimpse_lightning.bench import trace, training_report
from glimpse_lightning.bench.figures import TIMES
from glimpse_lightning.runtime.terminal import counted

SCALES: dict[str, tuple[float, str]] = {
    **dict.fromkeys(TIMES, (1e3, "ms")),
    **dict.fromkeys(("decode_speed", "speed"), (1.0, "tokens/s")),
    **dict.fromkeys(("prefill_flops", "scoring_flops", "vision_flops"), (1e-9, "GFLOP")),
    **dict.fromkeys(("kv_bytes", "peak_bytes"), (2**-20, "MiB")),
    "kv_length": (1.0, "tokens"),
}
"""Factor and unit that a figure is shown in; the JSON holds seconds, tokens/s, FLOPs, bytes and tokens."""

SUMMARY = ("prefill", "ttft", "tpot", "speed", "kv_bytes", "peak_bytes")

NOTE = """\
`kept`: visual tokens left after each stage, and their share of all. Other cells of the summaries: median; in brackets
the theoretical value; after the slash measured / theoretical. `vs HF`: median over rounds of the ratio to Hugging
Face's own forward in the same round, with its 95 % interval. Theory starts from the times of `hf`, so these have none.
`attainable`: the time of Hugging Face's own layers for as many tokens, measured in the same rounds. All figures and
their theory: docs/bench.md.
"""


def markdown(record: Mapping[str, Any]) -> str:
    """The whole record as Markdown."""
    groups = record["groups"]
    shown = training_report.lines(groups) if record["settings"]["training"] else figures(groups)
    return "\n".join([*head(record), "", *shown])


def head(record: Mapping[str, Any]) -> list[str]:
    """Title, and a table of model, machine and procedure."""
    machine, model = record["machine"], record["model"]
    fields = {
        "command": f"`{record['command']}`",
        "date, load": f"{machine['date']}, {machine['load']}",
        "machine": f"{machine['device']}; {machine['cores']} cores, {machine['threads']} threads of torch; "
        f"{machine['memory_gib']} GiB; {machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "commit": machine["commit"] or "-",
        "model": f"{model['name']} ({_weights(model['weights'])}, {model['parameters'] / 1e6:,.1f} M parameters, "
        f"{model['dtype']}, {model['attention']})",
        "passes": _passes(record["settings"], record["groups"]),
        "clock": record["clock"],
        "memory": record["memory"],
    }
    if asked := record["settings"].get("processor"):
        fields["image processor"] = ", ".join(f"{key} {value}" for key, value in asked.items())
    lines = [f"# Benchmark of {model['name']}", "", line(["field", "value"]), line(["---"] * 2)]
    return lines + [line(list(pair)) for pair in fields.items()]


def _weights(kind: str) -> str:
    return f"weights {kind}" if kind.startswith("of ") else f"{kind} weights"


def figures(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Summaries of groups that a sweep has measured, and all of their figures below."""
    lines = [NOTE]
    for group in groups:
        lines += _summary(group)
    lines += ["## All figures", ""]
    for group in groups:
        lines += _everything(group) if "variants" in group else []
    return lines


def _passes(settings: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    questions = next((group["samples"] for group in groups if "data" in group), None)
    number = (
        f"{settings['repetitions']} rounds"
        if questions is None
        else f"{counted(questions, 'question')}, one round each,"
    )
    answers = "" if settings["training"] else f", {settings['new_tokens']} new tokens each"
    return f"{number} after {settings['warmup']} of warm-up{answers}"


def _title(group: Mapping[str, Any]) -> str:
    if "data" in group:
        visual = f", {_count(group['visual_tokens'])} visual tokens on average" if "visual_tokens" in group else ""
        return f"{counted(group['samples'], 'question')} of {group['data']}, one at a time{visual}"
    return f"batch {group['batch']}, {group['visual_tokens']} visual + {group['text_tokens']} text tokens"


def _summary(group: Mapping[str, Any]) -> list[str]:
    lines = [f"## {_title(group)[0].upper()}{_title(group)[1:]}", ""]
    if "variants" not in group:
        return [*lines, f"Left out: {group['left_out']}.", ""]
    units = [f"{name} ({SCALES[name][1]})" for name in SUMMARY]
    header = ["variant", "kept", "prefill vs HF", "prefill / attainable", *units]
    lines += [line(header), line(["---"] * len(header))]
    for row in group["variants"]:
        found = row["figures"]
        kept = ", ".join(_kept(left, group["visual_tokens"]) for left in row.get("kept") or []) or "-"
        cells = [_cell(name, found[name]) for name in SUMMARY]
        reached = _ratio(found["prefill"].get("to_attainable"))
        lines.append(line([row["name"], kept, _versus(found["prefill"]), reached, *cells]))
    lines += [""]
    for row in group["variants"]:
        lines += trace.lines(row["name"], row["trace"]) if "trace" in row else []
    return lines


def _everything(group: Mapping[str, Any]) -> list[str]:
    header = ["variant", "figure", "unit", "median", "p10", "p90", "theory", "attainable"]
    header += ["measured / theory", "measured / attainable", "vs HF"]
    lines = [f"### {_title(group)[0].upper()}{_title(group)[1:]}", "", line(header), line(["---"] * len(header))]
    for row in group["variants"]:
        for name, figure in row["figures"].items():
            factor, unit = SCALES[name]
            show = _scaled(factor)
            values = [show(figure.get(key)) for key in ("median", "p10", "p90", "theory", "attainable")]
            ratios = [_ratio(figure.get(key)) for key in ("to_theory", "to_attainable")]
            lines.append(line([row["name"], name, unit, *values, *ratios, _versus(figure)]))
    return [*lines, ""]


def _kept(left: float, visual: float) -> str:
    return f"{_count(left)} ({left / visual:.1%})"


def _count(tokens: float) -> str:
    return f"{tokens:,.1f}".removesuffix(".0")


def _cell(name: str, figure: Mapping[str, Any]) -> str:
    show = _scaled(SCALES[name][0])
    ratio = figure.get("to_theory")
    return show(figure["median"]) + (f" ({show(figure['theory'])}) / {ratio:.2f}" if ratio is not None else "")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _versus(figure: Mapping[str, Any]) -> str:
    ratio = figure.get("vs_hf")
    return "-" if ratio is None else f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _scaled(factor: float) -> Callable[[float | None], str]:
    def show(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value * factor:,.0f}" if abs(value * factor) >= 1000 else f"{value * factor:.3g}"

    return show


def line(columns: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(columns)} |"
