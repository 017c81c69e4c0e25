"""What published methods' own code selects on random tensors, in ``tests/golden/methods/`` (see its README)."""

from __future__ import annotations

from functools import cache

from golden_numbers import GOLDEN
from safetensors.torch import load_file
from torch import Tensor


@cache
def cases(name: str) -> dict[str, dict[str, Tensor]]:
    """Tensors of ``<name>.safetensors``: by case (``"00"``, ``"01"``, ...), then by name (``"in/features"``)."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(GOLDEN / "methods" / f"{name}.safetensors").items():
        case, _, rest = key.partition("/")
        found.setdefault(case, {})[rest] = value
    return dict(sorted(found.items()))


def settings(case: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Outputs of a case by setting (``"b0"``, ``"b1"``, ...), then by name (``"budget"``, ``"kept"``)."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in case.items():
        parts = key.split("/")
        if len(parts) > 2 and parts[0] == "out":
            found.setdefault(parts[1], {})["/".join(parts[2:])] = value
    return dict(sorted(found.items()))
