"""Errors that a user can act on."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence


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


class UnknownArgumentError(GlimpseError, TypeError):
    """A keyword that a function or class does not take; a TypeError, too, as Python's own error is."""


def check_arguments(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise where a keyword is given that is not among the ``known`` arguments of ``owner``, a function or class.

    Raises:
        UnknownArgumentError: naming the owner, the keyword and the nearest argument.
    """
    for name in given:
        if name not in known:
            raise UnknownArgumentError(
                f"{owner} has no argument {name!r}.{nearest(name, known)} Its arguments are {', '.join(known)}."
            )


def no_attribute(module: str, name: str, choices: Sequence[str]) -> AttributeError:
    """The error of a name that a module does not have, with the nearest of ``choices``."""
    near = "" if name.startswith("_") else nearest(name, choices)
    return AttributeError(f"module {module!r} has no attribute {name!r}{near and '.'}{near}")


def suggest_names(module: str) -> None:
    """Let a module's AttributeError for a misspelt name suggest the nearest in its ``__all__``.

    It is set from here, as type checkers take a ``__getattr__`` in the module's text to find any name.
    """
    names = sys.modules[module].__dict__

    def refuse(name: str) -> object:
        raise no_attribute(module, name, names["__all__"])

    names["__getattr__"] = refuse


def nearest(name: str, choices: Sequence[str]) -> str:
    """`` Did you mean ...?`` with up to three of ``choices``; an empty text if none resembles ``name``.

    Those that begin with ``name`` come first. If none resembles it closely, it is compared with the last part of each,
    because a recipe's name without its folder is only half of it.
    """
    longer = sorted((choice for choice in choices if choice.startswith(name)), key=len) if name else []
    near = list(dict.fromkeys(longer + _close(name, choices)))
    if not near:
        ends = {choice.replace(".", "/").rpartition("/")[2]: choice for choice in choices}
        near = [ends[end] for end in _close(name, list(ends))[:1]]
    return did_you_mean(near)


def _close(name: str, choices: Sequence[str]) -> list[str]:
    """Up to three similar ``choices``, the best first, and of the others those that are nearly as similar."""
    likeness = {
        choice: difflib.SequenceMatcher(None, choice, name).ratio()
        for choice in difflib.get_close_matches(name, choices)
    }
    return [choice for choice, value in likeness.items() if value > max(likeness.values()) - 0.2]


def did_you_mean(names: Sequence[str]) -> str:
    """`` Did you mean ...?`` with up to three names; an empty text for none."""
    return f" Did you mean {' or '.join(names[:3])}?" if names else ""
