"""Arguments of a component that are given together, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


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
