"""Divergence of the pruned model's predictions from the full model's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.metrics.running_mean import RunningMean


def token_kl(full: Tensor, pruned: Tensor, mask: Tensor) -> Tensor:
    """``KL(full || pruned)`` in nats of next-token predictions, mean over each sample's answer tokens: ``[B]``.

    Args:
        full, pruned: logits ``[B, A, vocab]``.
        mask: answer tokens, ``[B, A]``: 1 at answer tokens, 0 at padding.
    """
    kl = F.kl_div(pruned.float().log_softmax(-1), full.float().log_softmax(-1), reduction="none", log_target=True)
    return (kl.sum(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)


class TokenKL(RunningMean):
    """``KL(full || pruned)`` per answer token in nats: mean over a sample's tokens, then over samples.

    Args:
        first: whether the first answer token alone counts.
    """

    higher_is_better = False

    def __init__(self, first: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.first = first

    def update(self, full: Tensor, pruned: Tensor, mask: Tensor) -> None:
        """Add a batch; arguments as in :func:`token_kl`. Samples without answer tokens do not count."""
        if self.first:
            full, pruned, mask = full[:, :1], pruned[:, :1], mask[:, :1]
        self.add(token_kl(full, pruned, mask)[mask.sum(1) > 0])
