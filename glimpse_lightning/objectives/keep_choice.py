"""Which visual tokens a rollout keeps: by the policy, by evidence boxes, or drawn as Bernoulli actions.

Suffix: ``V`` visual tokens that a stage decides on, of all prompts of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.engine.pruner import PruneStage
from glimpse_lightning.engine.request import Select

CERTAIN = 1e4
"""Logit whose sigmoid is exactly 1."""


@dataclass
class KeepChoice:
    """What the stages decided in one rollout; one entry per stage in each list.

    Attributes:
        kept: ``[V]`` boolean, what was kept.
        drawn: ``[V]`` boolean, the actions; empty where nothing was drawn. A policy's floor may keep a few tokens more.
        log_probs: ``[V]`` of these actions.
        sample: ``[V]`` the prompt of each action.
    """

    kept: list[Tensor] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    sample: list[Tensor] = field(default_factory=list)


def bernoulli_log_probs(scores: Tensor, drawn: Tensor) -> Tensor:
    """Log-probabilities ``[V]`` of keeping (``drawn``) with probability ``sigmoid(scores)``."""
    return F.logsigmoid(torch.where(drawn, scores, -scores).float())


def choose(choice: KeepChoice, draw: bool, oracle: Tensor) -> Select:
    """A selection that writes down in ``choice`` what it does.

    Args:
        draw: tokens are kept with probability ``sigmoid(score)`` instead of by the policy.
        oracle: ``[B]`` prompts that keep what their evidence boxes touch (under the policy's floor and cap) instead;
            without boxes, a prompt keeps what the policy says. Their decisions are nobody's actions.
    """

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        annotated = torch.tensor([group is not None for group in tokens.boxes], device=oracle.device)
        by_oracle = (oracle & annotated)[tokens.sample] if len(annotated) else torch.zeros_like(tokens.sample).bool()
        kept = stage.policy.select(scores, tokens)
        if draw:
            drawn = torch.rand_like(scores, dtype=torch.float32) < scores.float().sigmoid()
            # The policy's own rules for what was drawn: a floor keeps a prompt from losing everything.
            floor = stage.policy.select(torch.where(drawn, CERTAIN, -CERTAIN) + scores.float(), tokens)
            kept = drawn | floor
            choice.drawn.append(drawn)
            choice.log_probs.append(bernoulli_log_probs(scores, drawn))
            choice.sample.append(torch.where(by_oracle, -1, tokens.sample))
        if bool(by_oracle.any()):
            touched = evidence_mask(tokens, tokens.boxes)
            evidence = stage.policy.select(torch.where(touched, CERTAIN, -CERTAIN), tokens)
            kept = torch.where(by_oracle, evidence, kept)
        choice.kept.append(kept)
        return kept

    return select


def repeat(choice: KeepChoice, log_probs: list[Tensor] | None = None) -> Select:
    """A selection that keeps what ``choice`` kept, and appends its actions' log-probabilities under today's scores,
    where they are wanted.
    """
    stages = iter(range(len(choice.kept)))

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        index = next(stages)
        if choice.drawn and log_probs is not None:
            log_probs.append(bernoulli_log_probs(scores, choice.drawn[index]))
        return choice.kept[index]

    return select
