"""Hardening: soft keep decisions become a threshold's hard ones by the end of a training, which is checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from glimpse_lightning.core.segments import segment_sum
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.objectives.losses import mean_of_pruned
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.ranks import mean_over_ranks

GAP = 0.003
"""Largest difference between soft and hard budget that a training may end with, as a share of the budget's whole."""

OFF = 0.005
"""Largest difference between the hard budget and its target, likewise; of large budgets, a twentieth."""


LATE = 0.9
"""Share of a training after which its end begins."""

SHARPENING = 0.6
"""Share of the training from a given point on in which gates sharpen; in the rest the budget settles."""


REMEDY = "Train longer, or raise `model.objective.budget_weight`."


def sharpening(progress: float, start: float, sharpness: float) -> float:
    """Factor on logits: 1 up to the share ``start`` of the training, then rising geometrically to ``sharpness``, which
    it reaches when three fifths of the rest are done.
    """
    done = max(0.0, progress - start) / max(1e-9, SHARPENING * (1 - start))
    return sharpness ** min(1.0, done)


def product(gates: Sequence[Tensor]) -> Tensor:
    """``[V]`` product of all stages' gates on each token."""
    return reduce(torch.mul, gates)  # the backward pass of `prod` waits for the device


def mean_retention(keep: Tensor, tokens: VisualTokens, weight: Tensor | None = None) -> Tensor:
    """Share of a sample's tokens that ``keep [V]`` keeps, averaged, with ``weight [S]``, over those that have any."""
    group, total = tokens.groups()
    return mean_of_pruned(segment_sum(keep, group, len(total)) / total.clamp(min=1), total, weight)


class Ending:
    """The budget in the last steps of a training, counted in soft and in hard decisions.

    Args:
        steps: number of last steps that count, as far as they lie in the last tenth of the training; at least one does.
        remedy: what may bring a training that ends off its budget to it.
    """

    def __init__(self, steps: int = 50, remedy: str = REMEDY) -> None:
        self.remedy = remedy
        self._last: deque[Tensor] = deque(maxlen=steps)

    def add(
        self, pruner: Pruner | None, soft: Tensor, hard: Tensor, target: float | None, progress: float = 1.0
    ) -> None:
        """Remember one step, if its hard decisions are those of all of the pruner's policies.

        Args:
            soft, hard: scalars, shares of the tokens (or FLOPs) that the budget counts.
            target: share to spend at the end; ``None`` where none was asked for.
            progress: share of the training that is done.
        """
        if pruner is not None and all(_at_a_half(stage.policy) for stage in pruner.stages):
            soft, hard = soft.detach().float(), hard.detach().float()
            goal = hard if target is None else torch.full_like(hard, target)
            self._last.append(torch.stack([soft, hard, (soft - hard).abs(), goal, torch.full_like(hard, progress)]))

    def state(self) -> list[Tensor]:
        """The state for :meth:`load`, so that a resumed training still has its last steps."""
        return [step.cpu() for step in self._last]

    def load(self, state: Sequence[Tensor]) -> None:
        """Restore a :meth:`state`."""
        self._last.clear()
        self._last.extend(torch.cat([step, step.new_ones(5 - len(step))]) for step in state)  # 0.2.0 wrote no progress

    def remarks(self) -> list[str]:
        """Remarks for the user on these steps; none where all is well. To be called on all ranks."""
        if not self._last:
            return []
        last = torch.stack([step.to(self._last[-1].device) for step in self._last])  # a checkpoint's: in main memory
        last = last[last[:, 4] >= min(LATE, float(last[-1, 4]))]
        soft, hard, gap, target, _ = mean_over_ranks(last.mean(0)).tolist()
        over = f"in the last {len(last)} steps" if len(last) > 1 else "in the last step"
        found = []
        if gap > GAP:
            found.append(
                f"The training ends with half-open gates: {over} they let {soft:.1%} through in sum, and a threshold "
                f"of 0.5 keeps {hard:.1%} (the two differ by {gap:.1%} a step). Answers will be worse than the loss "
                "says. Train longer, or raise `model.objective.sharpness`."
            )
        if abs(hard - target) > max(OFF, target / 20):
            found.append(
                f"The training ends off its budget: {over} {hard:.1%} were kept, and {target:.1%} were asked for. "
                f"{self.remedy}"
            )
        return found


def _at_a_half(policy: object) -> bool:
    return isinstance(policy, Threshold) and policy.scale == "sigmoid" and policy.threshold == 0.5


class Hardening(Objective):
    """An objective whose soft decisions become hard ones; its remarks say how far they did, also after a stop."""

    def __init__(self) -> None:
        self._ending = Ending()

    @override
    def remarks(self) -> list[str]:
        return self._ending.remarks()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"ending": self._ending.state()}

    @override
    def load_state_dict(self, state: dict[str, Any], same_ranks: bool = True) -> None:
        self._ending.load(state.get("ending", []))
