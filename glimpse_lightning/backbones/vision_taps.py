"""States of chosen vision blocks, taken as they pass by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from glimpse_lightning.errors import GlimpseError


@contextmanager
def capture_blocks(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While the context is open, the outputs of ``blocks[layer]`` are stored under ``layer``.

    Raises:
        GlimpseError: where a layer does not exist.
    """
    states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            if not 0 <= layer < len(blocks):
                raise GlimpseError(
                    f"Expected vision layers between 0 and {len(blocks) - 1} (the vision tower has {len(blocks)} "
                    f"blocks), but the scorer asks for {layer}; change its `vision_layers`."
                )

            def keep(_module: nn.Module, _args: Any, output: Any, layer: int = layer) -> None:
                states[layer] = output[0] if isinstance(output, tuple) else output

            stack.callback(blocks[layer].register_forward_hook(keep).remove)
        yield states
