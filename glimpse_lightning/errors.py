"""Errors that a user can act on."""

from __future__ import annotations


class GlimpseError(ValueError):
    """Something the user can put right; the message says what was expected, what came and what to do.

    The command line prints the message alone, as one paragraph, and exits with a status that is not 0.
    """


class BadSampleError(GlimpseError):
    """One sample of a dataset cannot be used; a dataset with ``on_error: skip`` has it counted and left out."""
