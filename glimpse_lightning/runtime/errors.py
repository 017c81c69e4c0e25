"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


class GlimpseError(ValueError):
    """An error that the user can correct. The message names the expected value, the actual one and the remedy.

    The command line prints the message alone, as one paragraph, and exits with a status that is not 0.

    Examples:
        >>> try:
        ...     gl.VisionKeys(-1, heads="all")
        ... except gl.GlimpseError as error:
        ...     print(error)
        Expected vision keys with `heads` 'mean' or 'joint', but got 'all'.
    """


class BadSampleError(GlimpseError):
    """A sample that cannot be used. With ``on_error: skip`` a dataset leaves it out and counts it."""


class RefusedSamplesError(BadSampleError):
    """Samples of a batch that the processor cannot make tensors of.

    Args:
        reasons: message for each refused sample, by its place in the batch.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(" ".join(reasons.values()))
        self.reasons = dict(reasons)


def nearest(name: str, choices: Sequence[str]) -> str:
    """`` Did you mean ...?`` with up to three of ``choices``; an empty text if none resembles ``name``.

    Those that begin with ``name`` come first. If none resembles it closely, the nearest one is named, because a
    recipe's name without its folder is only half of it.
    """
    longer = sorted((choice for choice in choices if choice.startswith(name)), key=len) if name else []
    close = difflib.get_close_matches(name, choices, n=3)
    near = list(dict.fromkeys(longer + close))[:3] or difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else ""
