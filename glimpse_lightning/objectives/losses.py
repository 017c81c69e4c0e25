"""Losses over packed visual tokens and over answer tokens; each is a mean over samples of a mean within the sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.segments import segment_mean, segment_sum
from glimpse_lightning.runtime.ranks import mean_over_ranks

EPS = 1e-6


def dice_loss(logits: Tensor, target: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """``1 - (2 sum(p t) + 1e-6) / (sum p + sum t + 1e-6)`` with ``p = sigmoid(logits)``, for each sample.

    As in GlimpsePrune's reference. A sample without tokens has loss 0.

    Args:
        logits: ``[V]`` scores before the sigmoid.
        target: ``[V]`` 0 or 1.
        sample: ``[V]`` sample of each token.
        num_samples: ``S``, the number of samples.

    Returns:
        ``[S]``.
    """
    p, t = logits.float().sigmoid(), target.float()
    overlap, mass = segment_sum(p * t, sample, num_samples), segment_sum(p + t, sample, num_samples)
    return 1 - (2 * overlap + EPS) / (mass + EPS)


def bce_loss(logits: Tensor, target: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """Mean binary cross entropy of each sample ``[S]``; takes the arguments of :func:`dice_loss`."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return segment_mean(loss, sample, num_samples)


def weighted_mean(per_sample: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``[S]`` with weights ``[S]`` (``None`` = equal ones); 0 where all weights are 0.

    The ranks of a distributed run divide by their mean weight, so that the mean of their results (and gradients) is
    that of all samples together.
    """
    if weight is None:
        return per_sample.mean()
    total = mean_over_ranks(weight.sum())
    return (per_sample * weight).sum() / total.clamp(min=torch.finfo(per_sample.dtype).tiny)


def mean_of_pruned(per_sample: Tensor, total: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``[S]``, with ``weight [S]``, over the samples that have any of their ``total [S]`` visual tokens; 0
    where none has.

    The ranks of a distributed run divide by their mean count, as in :func:`weighted_mean`.
    """
    pruned = (total > 0).to(per_sample.dtype)
    return weighted_mean(per_sample, pruned if weight is None else pruned * weight)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    sample: Tensor,
    num_samples: int,
    dice_weight: float = 1.0,
    bce_weight: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """``dice_weight * dice + bce_weight * bce``, averaged over samples with ``weight [S]``; a scalar.

    The weights in the reference's released configurations are 1.0 and 0.1.
    """
    dice = dice_loss(logits, target, sample, num_samples)
    bce = bce_loss(logits, target, sample, num_samples)
    return weighted_mean(dice_weight * dice + bce_weight * bce, weight)


def answer_loss(logits: Tensor, ids: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy in nats of answer tokens: mean over a sample's tokens, then over samples with ``weight [B]``.

    Args:
        logits: ``[B, A, vocab]``; entry ``a`` predicts token ``a``.
        ids: ``[B, A]`` tokens of the answers.
        mask: ``[B, A]`` 1 at answer tokens.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return weighted_mean((loss * mask).sum(1) / mask.sum(1).clamp(min=1), weight)


def k3_kl(log_probs: Tensor, reference: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """Schulman's k3 estimate of ``KL(policy || reference)``: mean of ``exp(r - p) - (r - p) - 1``; a scalar.

    ``log_probs`` and ``reference`` ``[T]`` are those of the sampled tokens, packed; ``sample [T]`` is each token's
    sample. Mean over a sample's tokens, then over samples (http://joschu.net/blog/kl-approx.html).
    """
    return segment_mean(k3(log_probs, reference), sample, num_samples).mean()


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """``exp(r - p) - (r - p) - 1`` of each sampled token, at least 0; any shape."""
    ratio = reference - log_probs
    return ratio.exp() - ratio - 1
