"""Arguments of VIP that only pruners of the reference's other configurations set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from transformers.activations import ACT2FN

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.runtime.errors import check_arguments
from glimpse_lightning.runtime.renames import UNTIL


@dataclass(frozen=True)
class UpstreamOptions:
    """Variants of VIP that the reference's configurations can describe, and that no recipe of ours trains.

    Importing a ``new_modules_gp.pt`` sets them. The defaults are the published Qwen2.5-VL configuration.

    Args:
        window: side of the square windows, in tokens, within which the layers attend; ``None``: the whole image.
        deep_supervision: whether every layer has an output head; by default only the last one has.
        glimpse_length: number of glimpse tokens; the attention of the last one is read.
        glimpse_layers: decoder layers that add a vector to the glimpse tokens; ``None``: all.
        glimpse_norm: norm of these vectors.
        masks: source of the scores. ``predicted``: the network. ``reference``: the masks that ``prefill`` was given as
            ``state={"reference_masks": [...]}``, as logits (the reference's ``use_ref_masks``). ``zero``: every token
            scores as one outside such masks (``use_zero_masks``). With the latter two neither glimpse nor network runs.
        activation: activation of the layers' gated MLPs, by its name in transformers.

    Raises:
        ValueError: where a value is out of range.
    """

    window: int | None = None
    deep_supervision: bool = False
    glimpse_length: int = 1
    glimpse_layers: Sequence[Layer] | None = None
    glimpse_norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    masks: Literal["predicted", "reference", "zero"] = "predicted"
    activation: str = "silu"

    def __post_init__(self) -> None:
        if self.activation not in ACT2FN:
            raise ValueError(f"Expected `activation` to be one of {', '.join(ACT2FN)}, but got {self.activation!r}.")
        if self.masks not in ("predicted", "reference", "zero"):
            raise ValueError(f"Expected `masks` to be 'predicted', 'reference' or 'zero', but got {self.masks!r}.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"Expected `window` to be None (whole image) or at least 1 token, but got {self.window}.")
        checked("glimpse_layers", self.glimpse_layers)

    @classmethod
    def of(cls, block: UpstreamOptions | Mapping[str, Any] | None, **keys: Any) -> UpstreamOptions:
        """The options that VIP's arguments describe.

        Args:
            block: options, or a mapping of them; ``None``: the defaults.
            **keys: single options, as VIP took them before they had a block; read until version 0.4. One that differs
                from its default replaces the block's.
        """
        if isinstance(block, Mapping):
            check_arguments(cls.__name__, block, [entry.name for entry in fields(cls)])
        given = block if isinstance(block, UpstreamOptions) else cls(**(block or {}))
        changed = {name: value for name, value in vars(cls(**keys)).items() if value != getattr(cls, name)}
        for name in changed:
            message = f"`{name}` of VIP is now `upstream.{name}`; the old argument works until {UNTIL}."
            warnings.warn(message, DeprecationWarning, stacklevel=3)
        return replace(given, **changed)
