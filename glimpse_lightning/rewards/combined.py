"""Several rewards, weighted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class RewardFacts:
    """Facts about one answer that rewards can use; see :mod:`glimpse_lightning.rewards`."""

    question: str
    answer: str
    references: Sequence[str]
    boxes: Any = None
    retention: float = 1.0
    tokens: int = 0
    finished: bool = True

    @property
    def reference(self) -> str:
        """The first reference."""
        return self.references[0] if self.references else ""


REFERENCES = frozenset({"reference", "references"})
NAMES = (*(field.name for field in fields(RewardFacts)), "reference")


@dataclass(frozen=True)
class Rewarded:
    """Rewards of some answers.

    Attributes:
        total: weighted sums; NaN if a part is not known.
        parts: each reward by name, unweighted.
    """

    total: list[float]
    parts: dict[str, list[float]]


class CombinedReward:
    """A weighted sum of rewards.

    Args:
        rewards: weight of each reward by name, or a mapping of ``weight`` and the reward's own options. A name is one
            of :mod:`glimpse_lightning.rewards`, or the dotted path of a function or class of yours.

    Raises:
        GlimpseError: if a name or an option does not exist, or a weight is no number.
    """

    def __init__(self, rewards: Mapping[str, float | Mapping[str, Any]]) -> None:
        if not rewards:
            raise GlimpseError("Expected at least one reward, such as {exact_match: 1.0}, but got none.")
        self.weights: dict[str, float] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        for name, setting in rewards.items():
            options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
            weight = options.pop("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise GlimpseError(f"Expected the weight of reward `{name}` to be a number, but got {weight!r}.")
            self.weights[name] = float(weight)
            self.functions[name] = _made(name, _found(name), options)

    def __call__(self, answers: Sequence[RewardFacts]) -> Rewarded:
        """Reward answers. A reward with a method ``many`` gets all answers at once.

        Rewards that compare with references are NaN for a question without references.
        """
        parts: dict[str, list[float]] = {}
        for name, function in self.functions.items():
            many, wanted = getattr(function, "many", None), _wanted(function)
            known = [bool(facts.references) or not REFERENCES.intersection(wanted) for facts in answers]
            asked = [facts for facts, is_known in zip(answers, known, strict=True) if is_known]
            arguments = [{key: getattr(facts, key) for key in wanted} for facts in asked]
            values = iter(many(arguments) if many else [float(function(**given)) for given in arguments])
            parts[name] = [next(values) if is_known else math.nan for is_known in known]
        rows = zip(*parts.values(), strict=True)
        total = [sum(w * value for w, value in zip(self.weights.values(), row, strict=True)) for row in rows]
        return Rewarded(total, parts)

    @property
    def reads_references(self) -> bool:
        """Whether any reward compares with reference answers."""
        return any(REFERENCES.intersection(_wanted(function)) for function in self.functions.values())

    @property
    def counts(self) -> dict[str, float]:
        """Counts of rewards that can fail (calls, failures), by ``<reward>/<count>``."""
        found = {name: getattr(function, "counts", {}) for name, function in self.functions.items()}
        return {f"{name}/{what}": float(value) for name, counts in found.items() for what, value in counts.items()}


def own_rewards() -> list[str]:
    """Names of the package's rewards, each in a file of that name."""
    files = (file.name for file in iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in files if f"{__package__}.{name}" != __name__)


def _found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    own = own_rewards()
    try:
        return getattr(import_module(f"{__package__}.{name}" if name in own else module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise GlimpseError(
            f"Expected a reward out of {', '.join(own)}, or the dotted path of a function, but got {name!r}."
        ) from error


def _made(name: str, function: Any, options: dict[str, Any]) -> Callable[..., Any]:
    known = set(inspect.signature(function).parameters) - (set() if inspect.isclass(function) else set(NAMES))
    unknown = sorted(set(options) - known)
    if unknown:
        raise GlimpseError(
            f"Reward `{name}` has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}."
        )
    made: Any = function(**options) if inspect.isclass(function) else partial(function, **options)
    parameters = inspect.signature(made).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in NAMES]
    if missing:
        raise GlimpseError(
            f"Reward `{name}` asks for {', '.join(missing)}, which is no fact about an answer ({', '.join(NAMES)}); "
            "give it a default, or set it as an option."
        )
    return made


def _wanted(function: Callable[..., Any]) -> list[str]:
    return [key for key in inspect.signature(function).parameters if key in NAMES]
