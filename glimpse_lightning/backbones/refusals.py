"""Errors of a processor, assigned to the samples that cause them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import BLANK, Sample
from glimpse_lightning.runtime.errors import GlimpseError, RefusedSamplesError

_VISUAL = r"\w*(image|video|vision|audio|boi|eoi)\w*_token"
"""Pattern of the names that configurations and processors give to tokens of images, videos and audio."""


def placeholders(config: PretrainedConfig, processor: Any) -> frozenset[str]:
    """Texts that a processor and its model read as placeholders of images, videos or audio."""
    ids = [value for name, value in vars(config).items() if re.fullmatch(rf"{_VISUAL}_(id|index)", name)]
    known = processor.tokenizer.convert_ids_to_tokens([number for number in ids if isinstance(number, int)])
    named = [getattr(processor, name) for name in dir(processor) if re.fullmatch(_VISUAL, name)]
    return frozenset(text for text in (*known, *named) if isinstance(text, str) and text)


def check_conversation(messages: Sequence[Mapping[str, Any]], forbidden: frozenset[str]) -> None:
    """Raise where a text of a conversation holds one of the ``forbidden`` placeholders.

    Raises:
        GlimpseError: naming the placeholder; the model would look for an image there.
    """
    for message in messages:
        for part in message["content"]:
            for token in sorted(forbidden):
                if token in part.get("text", ""):
                    raise GlimpseError(
                        f"{token!r} stands in the text of a message, where this model reads the place of an image. "
                        "Take it out; images are parts of their own."
                    )


def collate_or_refuse(
    collate: Callable[[Sequence[Sample]], Batch],
    samples: Sequence[Sample],
    forbidden: frozenset[str],
    ends: frozenset[str],
) -> Batch:
    """A batch of ``samples``.

    A processor's error is about the whole batch, or it takes a placeholder written in one question for the place of the
    next question's image. Questions are therefore searched for placeholders first, and after an error each sample is
    tried alone.

    Args:
        collate: function that makes the batch.
        forbidden: texts that no question may hold.
        ends: texts that no answer may hold, because the model would read the answer's end or an image there.

    Raises:
        RefusedSamplesError: if samples cannot be used; the error names their places. Other errors of ``collate`` pass
            unchanged, if it also refuses a blank sample, or no sample alone.
    """
    reasons = {}
    for index, sample in enumerate(samples):
        in_question = sorted(token for token in forbidden if token in sample.question)
        in_answer = sorted(token for token in ends if token in "".join(sample.answers[:1]))
        if in_question:
            reasons[index] = (
                f"{sample.place}: {in_question[0]!r} stands in its question, where this model reads the place of an "
                "image; take it out (images stand before the question by themselves)."
            )
        elif in_answer:
            reasons[index] = (
                f"{sample.place}: {in_answer[0]!r} stands in its answer, where this model reads an image or the "
                "answer's end; take it out."
            )
    failure = None
    if not reasons:
        try:
            return collate(samples)
        except Exception as error:  # processors raise errors of many types: ValueError, IndexError, ...
            failure = error
            if _refusal(collate, BLANK) is not None:
                raise
    for index, sample in enumerate(samples):
        why = None if index in reasons else _refusal(collate, sample)
        if why is not None:
            reasons[index] = f"{sample.place}: the processor refuses it ({why}); mend it, or leave it out."
    if failure is not None and not reasons:
        raise failure
    raise RefusedSamplesError(reasons)


def _refusal(collate: Callable[[Sequence[Sample]], Batch], sample: Sample) -> str | None:
    """Message of ``collate`` about a sample; ``None`` if it accepts the sample."""
    try:
        collate([sample])
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0].rstrip(".") if lines else type(error).__name__
    return None
