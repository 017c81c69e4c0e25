"""Remarks below a table, and in ``results.json``, about figures that are easily misread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glimpse_lightning.backbones.load import TINY
from glimpse_lightning.backbones.regions import Region, share_seen
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.evaluation.records import Summary, summarise

PAD = "LLaVA-1.5's pads instead with --model.processor.do_pad true."
WHOLE_ENOUGH = 0.99
"""Share of an image from which it counts as seen whole: most processors round its size."""


def foreign_to_tiny(backbone: str | None, dataset: Any) -> str:
    """What answers of glimpse-tiny are worth on other data than its own; empty for its own and for other backbones.

    Args:
        backbone: name of the backbone.
        dataset: dataset of the questions.
    """
    if backbone != TINY or dataset is None or isinstance(dataset, GlyphVQA):
        return ""
    return (
        f"{TINY} knows GlyphVQA's pages and questions, and no others: about your images its answers mean nothing, and "
        "that two of them agree means little. It shows that everything runs; name your model with --backbone."
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
    """A comparison with the baseline of random tokens, where this is better; empty where it is not, or not there."""
    random = summary.baselines.get("Random")
    if not random:
        return ""
    own, other = summarise(summary.records), summarise(random)
    name = "accuracy" if own["scored"] else "agreement"
    if own[name] is None or own[name] >= other[name]:
        return ""
    return (
        f"As many tokens chosen at random do better ({name} {other[name]:.1%} against {own[name]:.1%}). If the scorer "
        "is a trained one, train it longer."
    )


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


def cropped_away(items: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says how little of a sample's images the model saw; empty where it saw them whole.

    Args:
        items: items of the images, as from ``kept_by_item``.
    """
    by_image: dict[int, list[Region]] = {}
    for item in items:
        by_image.setdefault(item["image"], []).append(item["region"])
    least = min(map(share_seen, by_image.values()), default=1.0)
    which = "the image" if len(by_image) == 1 else "one of the images"
    if not least < WHOLE_ENOUGH:
        return ""
    return f"The model saw {least:.0%} of {which}: its processor crops. {PAD}"
