"""Parameters of which every rank holds a share: gathered whole, and given up again.

Where nothing is sharded these functions do nothing, or return tensors as they are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def release(module: nn.Module) -> None:
    """Give up what is gathered, so that parameters are the shards again: before these are changed or saved."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_state(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The state of ``module`` with whole tensors on the CPU. All ranks have to call it; those that do not ``keep`` it
    get nothing.
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
    """How many parameter entries this rank holds, and how many there are."""
    release(module)
    local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters())
    return local, sum(p.numel() for p in module.parameters())


def gather_for_backward(unit: nn.Module, *outputs: Tensor | None) -> None:
    """Have ``unit`` gathered before the gradient of ``outputs`` enters it.

    FSDP2 sees to that for what a unit returns, not for what it leaves elsewhere (captured attention rows).
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
    """The class of ``part``; sharding puts one of its own before it."""
    return next(kind for kind in type(part).__mro__ if not issubclass(kind, FSDPModule))
