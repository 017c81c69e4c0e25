"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


class GlimpseError(ValueError):
    """Something the user can put right; the message says what was expected, what came and what to do.

    The command line prints the message alone, as one paragraph, and exits with a status that is not 0.

    Examples:
        >>> try:
        ...     gl.VisionKeys(-1, heads="all")
        ... except gl.GlimpseError as error:
        ...     print(error)
        Expected vision keys with `heads` 'mean' or 'joint', but got 'all'.
    """


class BadSampleError(GlimpseError):
    """One sample of a dataset cannot be used; a dataset with ``on_error: skip`` has it counted and left out."""


class RefusedSamplesError(BadSampleError):
    """Samples of a batch that the processor cannot make tensors of.

    Args:
        reasons: what is wrong with each of them, by its place in the batch.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(" ".join(reasons.values()))
        self.reasons = dict(reasons)


def nearest(name: str, choices: Sequence[str]) -> str:
    """`` Did you mean ...?`` with up to three of ``choices``; nothing where none is like ``name``.

    Where none is very like it, the likeliest is named: a recipe's name without its folder is only half of it.
    """
    near = difflib.get_close_matches(name, choices, n=3) or difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else ""
