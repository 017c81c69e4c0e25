"""Layers that an argument names: by number, or by share of the model's depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jsonargparse.typing import OpenUnitInterval

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    Layer = int | float
else:  # not float: a parser might read 1 as the share 1.0
    Layer = int | OpenUnitInterval
"""A layer's number, counted from 0; or the share of the depth, between 0 and 1, that ends with the layer."""


class Layered:
    """A part of a pruner with arguments that name layers.

    Attributes:
        layer_arguments: the arguments that name layers, and for each one ``decoder`` (decoder layers) or ``vision``
            (blocks of the vision tower). Each is kept as an attribute of its own name: a ``Layer``, a list of them, or
            a value that names none.
    """

    layer_arguments: ClassVar[Mapping[str, Literal["decoder", "vision"]]] = {}

    def number_layers(self, facts: ModelFacts) -> None:
        """Replace shares by layer numbers once the model is known; called by ``Pruner.build``.

        The share ``s`` of ``n`` layers ends with the layer after which ``s * n`` layers have run, rounded half up and
        at least one: layer ``max(1, floor(s * n + 0.5)) - 1``. In a vision tower it is the nearest block to that one
        whose attention spans a whole image, the earlier of two.

        Raises:
            GlimpseError: for a block that the vision tower does not have, and for a share of an unknown depth.
        """
        for name, tower in self.layer_arguments.items():
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                setattr(self, name, _number(name, value, tower, facts))
            elif isinstance(value, Sequence) and not isinstance(value, str):
                setattr(self, name, [_number(name, each, tower, facts) for each in value])


def checked(name: str, layers: Any) -> Any:
    """The argument ``name`` unchanged: a ``Layer``, several, or a value that names none.

    Raises:
        GlimpseError: for a fractional number that is not between 0 and 1.
    """
    for layer in _each(layers):
        if isinstance(layer, float) and not 0 < layer < 1:
            raise GlimpseError(
                f"Expected `{name}` to be a layer's number, a whole one, or a share of the depth between 0 and 1, but "
                f"got {layer}. Write 3 for the fourth layer, and 0.25 for the last one of the first quarter."
            )
    return layers


def reached(name: str, layers: Sequence[int], after_layer: int, first: int = 0) -> tuple[int, ...]:
    """The argument's ``layers``, numbered, none of which may come after the stage's last layer.

    Raises:
        GlimpseError: for a layer before ``first`` or after ``after_layer``.
    """
    if layers and not first <= min(layers) <= max(layers) <= after_layer:
        raise GlimpseError(
            f"Expected `{name}` to lie between {first} and the stage's `after_layer` = {after_layer}, but got "
            f"{list(layers)}. Later layers have not run when the stage prunes: lower them or raise `after_layer`."
        )
    return tuple(layers)


def _each(layers: Any) -> Iterator[Any]:
    several = isinstance(layers, Sequence) and not isinstance(layers, str)
    yield from layers if several else [layers]


def _number(name: str, layer: Layer, tower: str, facts: ModelFacts) -> int:
    depth = facts.num_layers if tower == "decoder" else facts.vision_layers
    if isinstance(layer, int):
        if tower == "vision" and depth and not -depth <= layer < depth:
            raise GlimpseError(
                f"Expected `{name}` to be one of the {depth} blocks of this model's vision tower (0 to {depth - 1}, or "
                f"-1 = the last), but got {layer}. Give another number, or a share of its depth such as 0.4."
            )
        return layer
    if not depth:
        raise GlimpseError(
            f"Expected `{name}` to be a number, as the depth of this model's vision tower is not known, but got the "
            f"share {layer}."
        )
    last = max(1, int(layer * depth + 0.5)) - 1
    whole = facts.whole_image_blocks if tower == "vision" else ()
    return min(whole, key=lambda block: abs(block - last)) if whole else last
