"""Group-relative policy gradients: GRPO and its relatives, as functions of log-probabilities and rewards.

Suffixes: ``B`` prompts, ``G`` answers of each, ``R = B * G`` answers, ``T`` tokens of an answer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.runtime.ranks import mean_over_ranks

Variant = Literal["grpo", "dr_grpo", "rloo"]
Mean = Literal["sequence", "token", "constant"]
STD_EPS = 1e-4


def group_advantages(rewards_BG: Tensor, valid_BG: Tensor, variant: Variant) -> Tensor:
    """Advantage of each answer over its group: ``[B, G]``, 0 where it is not valid.

    ``grpo``: ``(r - mean) / (std + 1e-4)`` with the unbiased deviation (DeepSeekMath, arXiv 2402.03300; the constant is
    GlimpsePrune's); ``dr_grpo``: ``r - mean`` (arXiv 2503.20783); ``rloo``: ``r`` - the mean of the others (arXiv
    2402.14740).

    Args:
        rewards_BG: ``[B, G]`` reward of each answer.
        valid_BG: ``[B, G]`` false where the reward is not known: such answers belong to no group. Groups of fewer than
            two valid answers allow no comparison, and get 0.
    """
    centred, count = _centred(rewards_BG, valid_BG)
    if variant == "grpo":
        centred = centred / (group_deviation(rewards_BG, valid_BG)[:, None] + STD_EPS)
    elif variant == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)
    return torch.where(count > 1, centred, 0)


def group_deviation(rewards_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """``[B]`` unbiased standard deviation of the valid rewards of each group; 0 where there are fewer than two."""
    centred, count = _centred(rewards_BG, valid_BG)
    return (centred.square().sum(1) / (count[:, 0] - 1).clamp(min=1)).sqrt()


def _centred(rewards_BG: Tensor, valid_BG: Tensor) -> tuple[Tensor, Tensor]:
    """``([B, G], [B, 1])``: rewards less the mean of their group's valid ones, 0 elsewhere; number of valid ones."""
    valid = valid_BG.to(rewards_BG.dtype)
    count = valid.sum(1, keepdim=True)
    rewards = torch.where(valid_BG, rewards_BG, 0)
    return (rewards - rewards.sum(1, keepdim=True) / count.clamp(min=1)) * valid, count


def clipped_objective(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Loss of each action: ``-min(ratio * A, clamp(ratio, 1 - low, 1 + high) * A)``.

    PPO's surrogate (arXiv 1707.06347); with ``clip = None`` the ratio is not clamped. All arguments broadcast.
    """
    ratio = (log_probs - old).exp()
    loss = -ratio * advantages
    if clip is None:
        return loss
    return torch.maximum(loss, -ratio.clamp(1 - clip[0], 1 + clip[1]) * advantages)


def reduce_tokens(values_RT: Tensor, mask_RT: Tensor, weight_R: Tensor, mean: Mean, longest: int) -> Tensor:
    """One number from ``[R, T]`` values of tokens.

    ``sequence``: mean over an answer's tokens, then over answers; ``token``: mean over all tokens; ``constant``: sum
    over tokens / ``longest``, then mean over answers (Dr. GRPO, arXiv 2503.20783: long answers are not discounted).

    In a distributed run the means are over all ranks: averaging the ranks' results, as their gradients are, gives the
    result of one process for the whole batch.

    Args:
        mask_RT: ``[R, T]`` false at padding.
        weight_R: ``[R]`` 0 for answers that do not count.
        longest: tokens that an answer could have had.
    """
    mask = mask_RT * weight_R[:, None]
    per_answer = (values_RT * mask).sum(1)
    if mean == "token":
        return per_answer.sum() / mean_over_ranks(mask.sum()).clamp(min=1)
    lengths = mask_RT.sum(1).clamp(min=1) if mean == "sequence" else longest
    return (per_answer / lengths).sum() / mean_over_ranks(weight_R.sum()).clamp(min=torch.finfo(weight_R.dtype).tiny)


def sequence_mask(ids: Tensor, end_ids: Tensor) -> Tensor:
    """``[R, T]`` true up to and including the first end token of ``ids [R, T]``."""
    ends = torch.isin(ids, end_ids).long()
    return ends.cumsum(1) - ends == 0
