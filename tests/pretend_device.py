"""A CUDA device that is not there: tensors say that they are on it, and meeting one of the CPU's is an error.

The arithmetic is the CPU's, so anything can run to its end, and a tensor made on the wrong device is found where no GPU
is at hand. What a GPU's kernels compute, and how fast, only a GPU shows.

    with PretendDevice():
        model.to("cuda")
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# Take tensors of several devices at once, as torch's own do.
_COPIES = {Tensor.copy_, Tensor.__setitem__, torch._has_compatible_shallow_copy_type}
_INDEXING = {Tensor.__getitem__}
_TO_HOST = {Tensor.numpy, Tensor.__array__}


class PretendDevice(TorchFunctionMode):
    """While it is entered, ``cuda`` is a device like any other.

    A tensor belongs to the device by its storage, so that views, parameters and what autograd has saved follow.
    What is there already when it is entered is the CPU's. Storages are referred to weakly, which frees their memory
    and not their names, so that no new one is taken for an old one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_device: dict[int, Any] = {}
        self._of_host: dict[int, Any] = {}

    def __enter__(self) -> PretendDevice:
        kinds = {Tensor, *_below(Tensor)}
        for tensor in [thing for thing in gc.get_objects() if type(thing) in kinds]:  # constants of modules, say
            self._put(tensor, False)
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        attribute = getattr(func, "__self__", None)
        if attribute is Tensor.device:
            return CUDA if self._is_here(args[0]) else func(*args)
        if attribute is Tensor.is_cuda:
            return self._is_here(args[0])
        if func is Tensor.get_device:
            return 0 if self._is_here(args[0]) else -1
        if func in _TO_HOST and self._is_here(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        if func in (Tensor.cuda, Tensor.cpu):
            return self._to((args[0], CUDA if func is Tensor.cuda else CPU), {})
        if func is Tensor.to:
            return self._to(args, kwargs)
        wanted = _device(kwargs.get("device"))
        if wanted is not None:
            kwargs["device"] = "cpu" if wanted == CUDA else wanted
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type != wanted.type:
                raise RuntimeError(f"Expected a '{wanted.type}' device type for generator but found 'cpu'")
        here = self._meeting(func, args, kwargs) if wanted is None else wanted == CUDA
        out = func(*args, **kwargs)
        for tensor in _tensors(out) if here is not None else ():
            self._put(tensor, here)
        return out

    # -- which device -------------------------------------------------------------------------------------------------

    def _is_here(self, tensor: Tensor) -> bool:
        return _place(tensor) in self._of_device

    def _put(self, tensor: Tensor, here: bool) -> None:
        """Give a tensor whose storage is new to a device."""
        place = _place(tensor)
        if place is not None and place not in self._of_device and place not in self._of_host:
            (self._of_device if here else self._of_host)[place] = StorageWeakRef(tensor.untyped_storage())

    def _known(self, tensor: Tensor) -> bool:
        """Whether it is known where a tensor is; of what autograd has made it is not, until it meets another."""
        place = _place(tensor)
        return place in self._of_device or place in self._of_host

    def _meeting(self, func: Any, args: Any, kwargs: Any) -> bool | None:
        """Whether a call works on the device; ``None`` where its tensors do not say.

        Raises:
            RuntimeError: where its tensors are on several, and torch would not have it.
        """
        if func in _COPIES or getattr(func, "__name__", "") == "__set__":
            return self._is_here(args[0])
        tensors = [*_tensors([args, kwargs])]
        if func in _INDEXING and self._is_here(args[0]):
            return True  # an index may be on the CPU
        here = [tensor for tensor in tensors if self._is_here(tensor)]
        if not here:
            return False if all(self._known(tensor) for tensor in tensors) else None
        for tensor in tensors:
            if tensor.dim() and _place(tensor) in self._of_host:
                name = getattr(func, "__name__", func)
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"({name}: {tuple(tensor.shape)} is the CPU's)"
                )
        for tensor in tensors:  # made by autograd, or a number without dimensions
            if tensor.dim():
                self._put(tensor, True)
        return True

    # -- moves --------------------------------------------------------------------------------------------------------

    def _to(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """``Tensor.to`` of any form: a device, a type, both, or another tensor's; always a copy where it moves."""
        source, *rest = args
        values = [*rest, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other")]
        target, dtype = self._is_here(source), source.dtype
        for value in values:
            if isinstance(value, Tensor):
                target, dtype = self._is_here(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif _device(value) is not None:
                target = _device(value) == CUDA
        out = Tensor.to(source, dtype, copy=target != self._is_here(source) or kwargs.get("copy", False))
        self._put(out, target)
        return out


def _device(value: Any) -> torch.device | None:
    """The device that a value names, if it does."""
    if isinstance(value, torch.device):
        return CUDA if value.type == "cuda" else value
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu", "meta"):
        return CUDA if value.startswith("cuda") else torch.device(value)
    return None


def _place(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # without a storage
        return None


def _below(kind: type) -> Iterator[type]:
    for direct in type.__subclasses__(kind):
        yield direct
        yield from _below(direct)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)

