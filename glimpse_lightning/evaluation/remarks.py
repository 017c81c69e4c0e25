"""Remarks below a table, and in ``results.json``, about figures that are easily misread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

import torch

from glimpse_lightning.backbones.embedded import DENSE, LLAVA, TINY
from glimpse_lightning.backbones.regions import Region, share_seen
from glimpse_lightning.data.dense_glyph_vqa import DenseGlyphVQA
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.evaluation.records import Record, Summary, retention, summarise
from glimpse_lightning.metrics.exact_match import exact_match

PAD = "LLaVA-1.5's pads instead with --model.processor.do_pad true."
KNOWN = {TINY: GlyphVQA, DENSE: DenseGlyphVQA, LLAVA: DenseGlyphVQA}
"""The data that each embedded backbone was trained on."""
WHOLE_ENOUGH = 0.99
"""Share of an image from which it counts as seen whole: most processors round its size."""


def foreign(backbone: str | None, dataset: Any) -> str:
    """What answers of an embedded backbone are worth on other data than its own; empty for these and for other
    backbones.

    Args:
        backbone: name of the backbone.
        dataset: dataset of the questions.
    """
    known = KNOWN.get(backbone or "")
    if known is None or dataset is None or isinstance(dataset, known):
        return ""
    return (
        f"{backbone} knows {known.__name__}'s pages and questions, and no others: about other images its answers mean "
        "nothing, and that two of them agree means little. It shows that everything runs; name your model with "
        "--backbone."
    )


def why_nothing_is_right(summary: Summary, metric: str) -> str:
    """Advice where the full model answers no question with references right; empty where it answers some.

    Args:
        summary: the evaluation.
        metric: name of the metric of answers.
    """
    figures = summarise(summary.records)
    if not figures["scored"] or figures["full_accuracy"]:
        return ""
    return (
        f"The full model answers no question right: {metric} may ask for more than a right answer (--model.metric); "
        "the prompt may not say how short an answer is wanted (--data.prompt '{question} Answer with a single word.'); "
        "answers may be cut off (--model.max_new_tokens). predictions.jsonl shows its answers."
    )


def no_better_than_random(summary: Summary) -> str:
    """A comparison with the baseline of random tokens, where this is better by more than chance; empty where it is not,
    or not there. Better by more than chance: by two standard errors of the difference, paired by question.
    """
    random = summary.baselines.get("Random")
    if not random:
        return ""
    own, other = summarise(summary.records), summarise(random)
    name = "accuracy" if own["scored"] else "agreement"
    scores = {record.id: _figure(record, name) for record in summary.records}
    gains = [_figure(record, name) - scores[record.id] for record in random if record.id in scores]
    if len(gains) < 2 or mean(gains) <= 2 * stdev(gains) / len(gains) ** 0.5:
        return ""
    return (
        f"As many tokens chosen at random do better ({name} {other[name]:.1%} against {own[name]:.1%}). If the scorer "
        "is a trained one, train it longer."
    )


def _figure(record: Record, name: str) -> float:
    """A question's accuracy, 0 where it has no references, or its agreement."""
    if name == "accuracy":
        return record.score or 0.0
    return exact_match(record.prediction, [record.full_prediction])


def off_budget(summary: Summary, objective: Any) -> str:
    """The retention of a test next to the one that its objective asked for, where one is twice the other; else empty.

    Args:
        summary: the evaluation.
        objective: the objective, of which ``retention`` is read if its budget is one of tokens; or ``None``.
    """
    asked = getattr(objective, "retention", None)
    kept = summarise(summary.records)["retention"]
    if asked is None or kept is None or getattr(objective, "flops", None) is not None or asked / 2 <= kept <= asked * 2:
        return ""
    return f"The objective asked for {asked:.1%} of the tokens, and this evaluation kept {kept:.1%}."


def uneven(summary: Summary) -> str:
    """How the kept shares are spread where their mean says little: above four times their median; else empty."""
    shares = sorted(share for share in map(retention, summary.records) if share is not None)
    if len(shares) < 2 or mean(shares) <= 4 * median(shares):
        return ""
    return (
        f"Half of the questions keep at most {median(shares):.1%} of their tokens, and one keeps {shares[-1]:.1%}: the "
        f"mean, {mean(shares):.1%}, says little. A scorer that was trained for longer spreads its budget; a policy "
        "with a count or a ratio keeps as much of every question."
    )


def least_seen(items: Sequence[Mapping[str, Any]]) -> float:
    """The share that the model saw of that image of a sample of which it saw least.

    Args:
        items: items of the images, as from ``PrefillOutput.items``.
    """
    by_image: dict[int, list[Region]] = {}
    for item in items:
        by_image.setdefault(item["image"], []).append(item["region"])
    return min(map(share_seen, by_image.values()), default=1.0)


def cropped_away(items: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says how little of a sample's images the model saw; empty where it saw them whole.

    Args:
        items: items of the images, as from ``PrefillOutput.items``.
    """
    least = least_seen(items)
    if not least < WHOLE_ENOUGH:
        return ""
    which = "the image" if len({item["image"] for item in items}) == 1 else "one of the images"
    return f"The model saw {least:.0%} of {which}: its processor crops. {PAD}"


def partly_seen(shares: Sequence[float]) -> str:
    """A sentence that says of how many questions the model saw a part of the image only; empty where of none.

    Args:
        shares: share of the image that the model saw, by question.
    """
    parts = [seen for seen in shares if seen < WHOLE_ENOUGH]
    if not parts:
        return ""
    return (
        f"{len(parts)} of the answers are about images of which the model saw a part only ({min(parts):.0%} to "
        f"{max(parts):.0%}): its processor crops. {PAD}"
    )


def kept_in_padding(items: Sequence[Mapping[str, Any]]) -> int:
    """Number of kept tokens whose cell has its middle outside the image.

    Args:
        items: items of the images, as from ``PrefillOutput.items``.
    """
    count = 0
    for item in items:
        (_, rows, columns), (left, top, right, bottom) = item["grid"], item["region"]
        x = left + (torch.arange(columns) + 0.5) / columns * (right - left)
        y = top + (torch.arange(rows) + 0.5) / rows * (bottom - top)
        outside = ((x < 0) | (x > 1))[None, :] | ((y < 0) | (y > 1))[:, None]
        count += int((item["kept"].reshape(item["grid"]) & outside).sum())
    return count
