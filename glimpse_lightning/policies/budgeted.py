"""Base class of policies with a budget."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from glimpse_lightning.core.blocks import InBlock, check_keys
from glimpse_lightning.core.segments import rank_in_group
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget, Per
from glimpse_lightning.runtime.errors import GlimpseError


class Budgeted(Policy):
    """A policy that keeps as many tokens as its budget says.

    The budget is given as one (``budget: {ratio: 0.1}``) or by its arguments (``ratio: 0.1``); the two mean the same.

    Args:
        budget: number of tokens that each group may keep; a number is its ratio.
        **keys: arguments of :class:`~glimpse_lightning.policies.budget.Budget`, in place of ``budget``.

    Attributes:
        default_per: group that a budget without ``per`` is counted over.
        budget: the budget; its arguments are attributes of the policy, too.

    Raises:
        ValueError: where both are given, or neither.
        UnknownArgumentError: for a keyword that is no argument of a budget.
    """

    default_per: ClassVar[Per] = "sample"
    ratio = InBlock("budget")
    count = InBlock("budget")
    per = InBlock("budget")
    min_tokens = InBlock("budget")
    flops = InBlock("budget")

    def __init__(self, budget: Budget | float | None = None, **keys: Any) -> None:
        check_keys(self, keys)
        found = Budget.of(budget, **keys)
        self.budget = found if found.per is not None else replace(found, per=self.default_per)

    @property
    def may_keep_nothing(self) -> bool:
        return self.budget.may_keep_nothing

    def with_budget(self, retention: float | None = None, threshold: float | None = None) -> Policy:
        """A copy that keeps the share ``retention``; its groups and its ``min_tokens``, at least 1, stay."""
        if retention is None or threshold is not None:
            raise GlimpseError(
                f"{type(self).__name__} keeps a number of tokens and has no threshold: give a `retention`, or use the "
                "policy Threshold."
            )
        other = copy(self)
        least = max(1, self.budget.min_tokens)
        other.budget = replace(self.budget, ratio=retention, count=None, flops=None, min_tokens=least)
        return other

    def best(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        """Boolean mask ``[V]`` of each group's best tokens, as many as its budget, from ``scores [V]``."""
        group, budget = self.budget(tokens)
        return (rank_in_group(scores, group, len(budget)) < budget[group]) & (scores > -torch.inf)
