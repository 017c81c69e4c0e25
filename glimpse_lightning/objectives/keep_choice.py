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
from glimpse_lightning.engine.request import Select
from glimpse_lightning.pruner.stage import PruneStage

CERTAIN = 1e4
"""Logit whose sigmoid is exactly 1."""


@dataclass
class KeepChoice:
    """The stages' decisions in one rollout; one entry per stage in each list.

    Attributes:
        kept: ``[V]`` boolean, true at kept tokens.
        drawn: ``[V]`` boolean, the actions; empty where none was drawn. A policy's floor may keep a few tokens more.
        log_probs: ``[V]`` log-probabilities of these actions.
        sample: ``[V]`` the prompt of each action; -1 where evidence boxes decided.
    """

    kept: list[Tensor] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)
    sample: list[Tensor] = field(default_factory=list)


def bernoulli_log_probs(scores: Tensor, drawn: Tensor) -> Tensor:
    """Log-probabilities ``[V]`` of keeping (``drawn``) with probability ``sigmoid(scores)``."""
    return F.logsigmoid(torch.where(drawn, scores, -scores).float())


def choose(choice: KeepChoice, draw: bool, oracle: Tensor) -> Select:
    """A selection that records its decisions in ``choice``.

    Args:
        choice: record to which each stage's decisions are appended.
        draw: whether tokens are kept with probability ``sigmoid(score)`` instead of by the policy.
        oracle: ``[B]`` true for prompts that keep the tokens their evidence boxes touch (under the policy's floor and
            cap) instead. A prompt without boxes keeps the policy's choice. Decisions by boxes are no actions.
    """

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        annotated = torch.tensor([group is not None for group in tokens.boxes], device=oracle.device)
        by_oracle = (oracle & annotated)[tokens.sample] if len(annotated) else torch.zeros_like(tokens.sample).bool()
        kept = stage.policy.select(scores, tokens)
        if draw:
            drawn = torch.rand_like(scores, dtype=torch.float32) < scores.float().sigmoid()
            # The policy's own rules apply to drawn tokens too: its floor keeps a prompt from losing all.
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
    """A selection that keeps the same tokens as ``choice``, and appends its actions' log-probabilities under the
    current scores to ``log_probs``, if that is given.
    """
    stages = iter(range(len(choice.kept)))

    def select(stage: PruneStage, scores: Tensor, tokens: VisualTokens) -> Tensor:
        index = next(stages)
        if choice.drawn and log_probs is not None:
            log_probs.append(bernoulli_log_probs(scores, choice.drawn[index]))
        return choice.kept[index]

    return select
