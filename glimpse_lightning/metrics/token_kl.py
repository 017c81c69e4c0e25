"""How far the pruned model's predictions are from the full model's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


def token_kl(full: Tensor, pruned: Tensor, mask: Tensor) -> Tensor:
    """``KL(full || pruned)`` in nats of next-token predictions, mean over each sample's answer tokens: ``[B]``.

    Args:
        full, pruned: logits ``[B, A, vocab]``.
        mask: ``[B, A]`` 1 at answer tokens.
    """
    kl = F.kl_div(pruned.float().log_softmax(-1), full.float().log_softmax(-1), reduction="none", log_target=True)
    return (kl.sum(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)


class TokenKL(Metric):
    """``KL(full || pruned)`` per answer token in nats: mean over a sample's tokens, then over samples."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, full: Tensor, pruned: Tensor, mask: Tensor) -> None:
        """Add a batch; arguments as of :func:`token_kl`. Samples without answer tokens do not count."""
        seen = mask.sum(1) > 0
        self.total += token_kl(full, pruned, mask)[seen].double().sum()
        self.count += seen.sum()

    def compute(self) -> Tensor:
        """Mean, fp32; 0 before the first sample."""
        return (self.total / self.count.clamp(min=1)).float()
