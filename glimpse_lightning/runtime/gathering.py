"""Sharded parameters, of which every rank holds a share: gathering and releasing whole ones.

Without sharding these functions have no effect, or return tensors unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def release(module: nn.Module) -> None:
    """Release gathered parameters. Call this before shards are changed or saved."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_state(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The state of ``module`` with whole tensors on the CPU. All ranks have to call it. Ranks with ``keep=False`` get
    an empty dictionary.
    """
    release(module)
    full = {}
    for name, value in module.state_dict().items():
        tensor = whole(value)
        if keep:
            full[name] = tensor
    return full


def whole(value: Tensor) -> Tensor:
    """A parameter or buffer as one detached tensor on the CPU. All ranks have to call it."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def local_share(module: nn.Module) -> tuple[int, int]:
    """Number of parameter entries on this rank, and on all ranks together."""
    release(module)
    local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters())
    return local, sum(p.numel() for p in module.parameters())


def gather_for_backward(unit: nn.Module, *outputs: Tensor | None) -> None:
    """Gather ``unit`` before the gradient of ``outputs`` enters it.

    FSDP2 does this for the tensors that a unit returns, but not for those that it stores elsewhere (captured attention
    rows).
    """
    if not isinstance(unit, FSDPModule):
        return
    sharded: FSDPModule = unit

    def gather(_: Tensor) -> None:
        sharded.unshard()

    for output in outputs:
        if output is not None and output.requires_grad:
            output.register_hook(gather)


def own_class(part: object) -> type:
    """The class of ``part`` before sharding, which derives a class from it."""
    return next(kind for kind in type(part).__mro__ if not issubclass(kind, FSDPModule))
