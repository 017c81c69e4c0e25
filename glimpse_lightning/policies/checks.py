"""Argument checks that the policies share."""

from __future__ import annotations


def check_fraction(name: str, value: float) -> None:
    """Raise unless 0 <= ``value`` <= 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"Expected argument `{name}` to be a fraction between 0 and 1, but got {value!r}.")


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is a whole number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"Expected argument `{name}` to be an integer of at least 0 tokens, but got {value!r}.")


def check_positive(name: str, value: int, unit: str = "") -> None:
    """Raise unless ``value`` is a whole number of at least 1; ``unit``, as in ``" token"``, is for the error."""
    check_count(name, value)
    if value == 0:
        raise ValueError(f"Expected argument `{name}` to be at least 1{unit}, but got 0.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected argument `{name}` to be {listed}, but got {value!r}.")
