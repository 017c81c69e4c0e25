"""Arguments of a component that are given together, as one frozen dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from glimpse_lightning.runtime.errors import check_arguments


class InBlock:
    """An attribute of a component that reads and sets the argument of this name in one of its blocks.

    Args:
        block: name of the attribute that holds the block.
    """

    def __init__(self, block: str) -> None:
        self.block = block

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, component: Any, owner: type) -> Any:
        return self if component is None else getattr(getattr(component, self.block), self.name)

    def __set__(self, component: Any, value: Any) -> None:
        setattr(component, self.block, replace(getattr(component, self.block), **{self.name: value}))


def check_keys(component: Any, keys: Iterable[str]) -> None:
    """Raise where ``keys``, which a component passes on to its block, holds a name that no block of it has.

    Raises:
        UnknownArgumentError: naming the component's class, the keyword and the nearest argument.
    """
    kind = type(component)
    named = [entry for entry in inspect.signature(kind).parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    blocks = [name for base in kind.__mro__ for name, value in vars(base).items() if isinstance(value, InBlock)]
    check_arguments(kind.__name__, keys, list(dict.fromkeys([*(entry.name for entry in named), *blocks])))
