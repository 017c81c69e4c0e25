"""States, keys and attention of chosen vision blocks, captured by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from glimpse_lightning.backbones.vision_attention import AttentionReader, attention_of
from glimpse_lightning.core.visual_tokens import BlockTap, VisionTap
from glimpse_lightning.engine import taps
from glimpse_lightning.runtime.errors import GlimpseError


@contextmanager
def capture_blocks(
    blocks: nn.ModuleList,
    layers: Sequence[BlockTap],
    merge: Callable[[Tensor], Tensor] | None = None,
    class_token: bool = False,
) -> Iterator[dict[VisionTap, Tensor]]:
    """Context in which the values requested by each tap are stored under the tap, from this thread's forward, in the
    layout of the block's output.

    Args:
        blocks: blocks of the vision tower.
        layers: taps to capture; a number is the output of that block (see ``VisionTap``).
        merge: function applied to the values of a block, one row per patch, before they are stored; ``None``: they are
            stored unchanged. It runs as soon as the block has run, because all patches of several blocks would raise
            the tower's peak memory.
        class_token: whether the tower's sequences start with a class token.

    Raises:
        GlimpseError: if a layer does not exist.
    """
    states: dict[VisionTap, Tensor] = {}
    mine = get_ident()
    with ExitStack() as stack:
        for tap in layers:
            block = _block(blocks, tap)
            reader = None
            if not isinstance(tap, int):
                reader = AttentionReader(tap, class_token)
                stack.enter_context(taps.observe(attention_of(block), reader))

            def keep(
                _module: nn.Module,
                _args: Any,
                output: Any,
                tap: VisionTap = tap,
                reader: AttentionReader | None = reader,
            ) -> None:
                if get_ident() != mine:  # another thread's prompt
                    return
                hidden = output[0] if isinstance(output, tuple) else output
                found = hidden if reader is None else reader.result(hidden)
                states[tap] = found if merge is None else merge(found)

            stack.callback(block.register_forward_hook(keep).remove)
        yield states


def _block(blocks: nn.ModuleList, tap: BlockTap) -> nn.Module:
    layer = tap if isinstance(tap, int) else tap.layer
    if not -len(blocks) <= layer < len(blocks):
        raise GlimpseError(
            f"Expected vision layers between {-len(blocks)} and {len(blocks) - 1} (the vision tower has {len(blocks)} "
            f"blocks), but the scorer asks for {layer}; change its `vision_layers`."
        )
    return blocks[layer]
