"""Layers that an argument names: by number, or by share of the model's depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jsonargparse.typing import OpenUnitInterval

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    Layer = int | float
else:  # not float: of two types that fit, a parser may take either, and a share of 1.0 be meant by 1
    Layer = int | OpenUnitInterval
"""A layer's number, counted from 0; or the share of the depth, above 0 and below 1, that ends with the layer."""


class Layered:
    """A part of a pruner with arguments that name layers.

    Attributes:
        layer_arguments: those arguments, and whose layers they are: the decoder's, or the blocks of the vision tower.
            Each is kept as an attribute of its own name: a ``Layer``, a list of them, or something that names none.
    """

    layer_arguments: ClassVar[Mapping[str, Literal["decoder", "vision"]]] = {}

    def number_layers(self, facts: ModelFacts) -> None:
        """Put numbers in the place of shares, once the model is known; done by ``Pruner.build``.

        The share ``s`` of ``n`` layers is the layer with which ``s * n`` of them have run, rounded half up and at least
        one: layer ``max(1, floor(s * n + 0.5)) - 1``. In a vision tower it is the nearest block to that one whose
        attention spans a whole image, the earlier of two.

        Raises:
            GlimpseError: for a block that the vision tower has not, and for a share of a depth that is not known.
        """
        for name, tower in self.layer_arguments.items():
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                setattr(self, name, _number(name, value, tower, facts))
            elif isinstance(value, Sequence) and not isinstance(value, str):
                setattr(self, name, [_number(name, each, tower, facts) for each in value])


def checked(name: str, layers: Any) -> Any:
    """The argument ``name`` as it is: a ``Layer``, several, or something that names none.

    Raises:
        GlimpseError: for a number with a fraction that is no share.
    """
    for layer in _each(layers):
        if isinstance(layer, float) and not 0 < layer < 1:
            raise GlimpseError(
                f"Expected `{name}` to be a layer's number, a whole one, or a share of the depth between 0 and 1, but "
                f"got {layer}. Write 3 for the fourth layer, and 0.25 for the last one of the first quarter."
            )
    return layers


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
