"""VisionSelector's score: learned similarity of a token to the mean of its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Scorer

START = 1e-4
"""Standard deviation of a new scorer's weights and biases, as in the method's code."""


class VisionSelector(Scorer):
    """**Logits**, learned from a token and its image alone, independent of the question (VisionSelector, arXiv
    2510.16598).

    ``s_i = mean_j (W_q x_i + b_q) . (W_k x_j + b_k) / sqrt(d)`` over all tokens ``j`` of the item, ``x`` being the
    states at the stage. The mean is taken first, as ``W_k mean_j x_j + b_k``, so that no matrix of pairs is made and
    the cost is linear in the tokens. The method prunes before layer 0 with a top-k policy, trained by the objective
    ``DifferentiableTopK``. The defaults are the method's size (12.85 M weights for a decoder of width 3,584) and its
    initial values: all weights and biases are normal with a standard deviation of 1e-4, so that scores start near 0.

    The part ``b_q . b_k`` is the same for all tokens. It does not change top-k. ``Threshold`` and the objective ``KL``,
    which read scores as logits, need it. Departure: ``normalise``, off by default.

    Args:
        dim: width ``d`` of the projections; ``None``: half the decoder's.
        normalise: whether each ``x`` is divided by its root mean square first, so that scores start at the same size on
            every backbone.
    """

    query: nn.Linear
    key: nn.Linear

    def __init__(self, dim: int | None = None, normalise: bool = False) -> None:
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"Expected `dim` to be None (half the decoder's width) or at least 1, but got {dim}.")
        self.dim = dim
        self.normalise = normalise

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        width = max(1, facts.hidden_size // 2) if self.dim is None else self.dim
        self.query = nn.Linear(facts.hidden_size, width)
        self.key = nn.Linear(facts.hidden_size, width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=START)

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Logits ``[V]``, fp32."""
        x_VD = tokens.hidden.float()
        if self.normalise:
            x_VD = F.rms_norm(x_VD, x_VD.shape[-1:])
        count_I = torch.bincount(tokens.item, minlength=tokens.num_items).clamp(min=1)
        mean_ID = x_VD.new_zeros(tokens.num_items, x_VD.shape[-1]).index_add(0, tokens.item, x_VD) / count_I[:, None]
        dtype = self.query.weight.dtype
        query_Vd, key_Id = self.query(x_VD.to(dtype)), self.key(mean_ID.to(dtype))
        product = (query_Vd.float() * key_Id.float()[tokens.item]).sum(-1)
        return product / query_Vd.shape[-1] ** 0.5

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}offset" in state_dict:
            raise GlimpseError(
                "Expected weights of a VisionSelector with biases, but got some with `offset`, which earlier versions "
                "had in their place. Train it again, or install the version that saved it."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
