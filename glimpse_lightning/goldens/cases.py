"""Random inputs of a method's code, and what it selects from them, as safetensors files.

Tensors of a file: ``CC/in/NAME`` inputs of case CC, ``CC/out/bK/budget`` a number of tokens, ``CC/out/bK/order`` the
indices that were returned for it. Metadata: where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.policies.from_function import called, indices_of, inputs_of
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import replacing

GRIDS = ((8, 8), (8, 10), (12, 12), (10, 16), (16, 16), (12, 20), (20, 20), (24, 24))
"""Rows and columns of the images, one for each case."""
WIDTH, TEXT = 16, 6
"""Channels of states and keys, and number of text tokens."""
ROUNDING = 1e-6
"""Relative size of the change of all inputs under which a selection must stay: no case may hang on a rounding."""
DRAWS = 20
"""Draws of a case before it is given up."""
QUESTION = "what is in the image?"


@dataclass
class Case:
    """Inputs of one image, and what was selected from them.

    Attributes:
        inputs: tensors by the names of :class:`~glimpse_lightning.policies.FromFunction`; ``grid`` is [rows, columns].
        kept: indices that were returned, in that order, by budget.
    """

    inputs: dict[str, Tensor]
    kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the image's tokens."""
        rows, columns = self.inputs["grid"].tolist()
        return rows, columns


def budgets(tokens: int) -> list[int]:
    """Numbers of tokens that are asked for of an image: a sixteenth, a ninth and a third."""
    return sorted({max(5, tokens // 16), max(5, tokens // 9), tokens // 3})


def draw(grid: tuple[int, int], smooth: bool, rng: torch.Generator, width: int = WIDTH) -> dict[str, Tensor]:
    """Random inputs of an image.

    Args:
        grid: rows and columns of its tokens.
        smooth: whether neighbours' states are alike, as in a photograph; else they are independent.
        rng: generator of all draws.
        width: channels of states and keys.
    """
    rows, columns = grid
    size = rows * columns

    def states(count: int = size) -> Tensor:
        drawn = torch.randn(count, width, generator=rng)
        if not smooth or count != size:
            return drawn
        image = drawn.T.reshape(1, width, rows, columns)
        return 3 * F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)[0].reshape(width, size).T

    def weights() -> Tensor:
        return (1.2 * torch.randn(size, generator=rng)).softmax(0)

    return {
        "features": states(),
        "scores": weights().log(),
        "attention": weights(),
        "vision": states(),
        "vision_keys": states(),
        "keys": states(),
        "text": states(TEXT),
        "grid": torch.tensor(grid),
    }


def picked(
    function: Callable[..., Any], inputs: Mapping[str, Tensor], budget: int, arguments: Mapping[str, Any]
) -> Tensor:
    """Indices that a function returns for the inputs of an image, in its order, ascending from a mask.

    Raises:
        GlimpseError: where it returns something else; see :func:`~glimpse_lightning.policies.from_function.indices_of`.
    """
    values: dict[str, Any] = {name: tensor.clone() for name, tensor in inputs.items()}
    values |= {"grid": (1, *inputs["grid"].tolist()), "question": QUESTION, "budget": budget}
    missing = [name for name in inputs_of(function, arguments) if name not in values]
    if missing:
        raise GlimpseError(f"{called(function)} asks for `{missing[0]}`, which these cases do not have.")
    with torch.no_grad():
        result = function(**{name: values[name] for name in inputs_of(function, arguments)}, **arguments)
    return indices_of(result, len(inputs["features"]), budget)


def recorded(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    seed: int = 0,
    grids: Sequence[tuple[int, int]] = GRIDS,
    width: int = WIDTH,
) -> Iterator[Case]:
    """Cases of a function, one for each grid; a draw on which a rounding decides is replaced.

    Args:
        function: ``f(...) -> indices``, as :class:`~glimpse_lightning.policies.from_function.FromFunction` takes it.
        arguments: its other arguments.
        seed: seed of the draws.
        grids: rows and columns of the images.
        width: channels of states and keys.

    Raises:
        GlimpseError: where the function returns something else for the same inputs a second time, or where every draw
            hangs on a rounding: a kernel of more tokens than channels, for one.
    """
    used = inputs_of(function, arguments)
    for number, grid in enumerate(grids):
        rng = torch.Generator().manual_seed(1000 * seed + number)
        for _ in range(DRAWS):
            inputs = draw(grid, bool(number % 2), rng, width)
            case = Case({name: value for name, value in inputs.items() if name in (*used, "features", "grid")})
            if all(_add(case, function, arguments, inputs, budget, rng) for budget in budgets(grid[0] * grid[1])):
                yield case
                break
        else:
            raise GlimpseError(
                f"{called(function)} keeps other tokens of {grid[0]} x {grid[1]} when its inputs change by "
                f"{ROUNDING:g}, in {DRAWS} draws: rounding decides what it selects. Give it other grids, or states of "
                "more channels."
            )


def _add(
    case: Case,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    budget: int,
    rng: torch.Generator,
) -> bool:
    """Whether a selection does not hang on a rounding; it is added to ``case`` then."""
    order = picked(function, inputs, budget, arguments)
    kept = order.sort().values
    if not torch.equal(order, picked(function, inputs, budget, arguments)):
        raise GlimpseError(
            f"{called(function)} returns other tokens for the same inputs a second time. Seed what is random in it."
        )
    for _ in range(3):
        moved = {
            name: value * (1 + ROUNDING * torch.randn(value.shape, generator=rng)) if name != "grid" else value
            for name, value in inputs.items()
        }
        if not torch.equal(picked(function, moved, budget, arguments).sort().values, kept):
            return False
    case.kept[budget] = order
    return True


def write(cases: Sequence[Case], path: Path, metadata: Mapping[str, str]) -> None:
    """Write cases to a file."""
    tensors: dict[str, Tensor] = {}
    for number, case in enumerate(cases):
        tensors |= {f"{number:02}/in/{name}": value.contiguous() for name, value in case.inputs.items()}
        for place, budget in enumerate(sorted(case.kept)):
            out = f"{number:02}/out/b{place}"
            tensors |= {f"{out}/budget": torch.tensor(budget), f"{out}/order": case.kept[budget]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_bytes(save(tensors, dict(metadata)))


def read(path: Path) -> tuple[list[Case], dict[str, str]]:
    """Cases of a file, and its metadata.

    Raises:
        GlimpseError: where it cannot be read, or holds no cases.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise GlimpseError(f"{path} cannot be read as a file of `golden record`: {error}.") from error
    cases: dict[str, Case] = {}
    for name, tensor in tensors.items():
        match name.split("/"):
            case [number, "in", key]:
                cases.setdefault(number, Case({})).inputs[key] = tensor
            case [number, "out", setting, "kept" | "order"] if tensor.ndim == 1:
                budget = int(tensors.get(f"{number}/out/{setting}/budget", len(tensor)))
                cases.setdefault(number, Case({})).kept[budget] = tensor
    found = [case for _, case in sorted(cases.items()) if "features" in case.inputs and case.kept]
    if not found:
        raise GlimpseError(f"{path} holds no cases of `golden record`: features, and kept tokens, of images.")
    for case in found:
        case.inputs.setdefault("grid", torch.tensor([1, len(case.inputs["features"])]))
    return found, metadata
