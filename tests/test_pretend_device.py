"""The pretended device refuses what a real one refuses, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretend_device import PretendDevice
from torch import nn

X, Y = torch.arange(6.0).view(2, 3), torch.ones(3)

ALLOWED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number": lambda x: x * 2 + torch.tensor(1.0),
    "an index of the CPU": lambda x: x[torch.tensor([1, 0])],
    "a copy from the CPU": lambda x: x.clone().copy_(X),
    "made like it": lambda x: x + torch.ones_like(x) + x.new_zeros(3) + torch.zeros(3, device=x.device),
    "a view": lambda x: x.t()[:2].reshape(2, 2),
    "another type": lambda x: x.to(torch.float64).to(x),
    "what a module computes": lambda x: nn.Linear(3, 2).to(x.device)(x),
    "moved there": lambda x: x + Y.to("cuda:0") + Y.cuda(),
}
REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "a sum": lambda x: x + Y,
    "a list": lambda x: torch.cat([x, X]),
    "a function": lambda x: nn.functional.linear(x, X),
    "a module of the CPU": lambda x: nn.Linear(3, 2)(x),
    "an index on the device": lambda x: X[x[0].long()],
    "numpy": lambda x: x.numpy(),
    "a generator of the CPU": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    with PretendDevice():
        out = ALLOWED[name](X.to("cuda"))
        assert out.device.type == "cuda" and out.is_cuda
        assert out.cpu().device.type == "cpu"
        assert X.device.type == "cpu"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with PretendDevice():
        with pytest.raises((RuntimeError, TypeError), match="cuda"):
            REFUSED[name](X.to("cuda"))


def test_gradients_are_where_their_parameters_are() -> None:
    with PretendDevice():
        layer = nn.Linear(3, 2).to("cuda")
        layer(X.to("cuda")).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.is_cuda
        torch.optim.AdamW(layer.parameters()).step()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        assert layer.weight.device == torch.device("cuda", 0)
