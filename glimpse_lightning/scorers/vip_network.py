"""The network of the visual importance predictor. Modules have the reference's names, so that its weights load
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from glimpse_lightning.core.segments import Padding
from glimpse_lightning.runtime.ranks import mean_over_ranks

EPS = 1e-6
Turn = tuple[Tensor, Tensor]
"""Cosine, and sine with the sign that it has in :func:`rotate`, ``[V, 1, E]`` of the angles by which all heads turn."""


def rotary_2d(row_V: Tensor, column_V: Tensor, dim: int, theta: float = 1e4) -> Tensor:
    """Rotation angles ``[V, dim]`` in fp32: the first quarter turns with the row, the next with the column, then again.

    As in Qwen2.5-VL's vision tower: ``frequency_j = theta^(-2j / (dim/2))``.
    """
    half = dim // 2
    frequency = theta ** -(torch.arange(0, half, 2, device=row_V.device, dtype=torch.float32) / half)
    angle = torch.cat([row_V.float()[:, None] * frequency, column_V.float()[:, None] * frequency], dim=-1)
    return torch.cat([angle, angle], dim=-1)


def rotate(x_VHE: Tensor, turn: Turn) -> Tensor:
    """Rotary embedding of ``[V, heads, E]``, in fp32, returned in the dtype of ``x_VHE``."""
    x, (cos, sin) = x_VHE.float(), turn
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x_VHE.dtype)


def turn_by(angle_VE: Tensor) -> Turn:
    """Argument of :func:`rotate` for angles whose halves are equal."""
    sin = angle_VE.sin()
    first, second = sin.chunk(2, dim=-1)
    return angle_VE.cos()[:, None], torch.cat([-first, second], -1)[:, None]


class Standardise(nn.Module):
    """Features ``[V, F]`` to mean 0 and variance 1, measured once, on the first training batch; fp32.

    Until then, and for a constant feature, the scale stays unchanged. With several ranks, their first batches are
    measured together.
    """

    mean: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self._settled = False  # copy of `measured` on the host: reading the buffer would wait for the device

    def forward(self, x_VF: Tensor) -> Tensor:
        x_VF = x_VF.float()
        if self.training and not self._settled:
            if not self.measured:
                self._measure(x_VF.detach())
            self._settled = bool(self.measured)
        return (x_VF - self.mean) * self.scale

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = False

    def _measure(self, x_VF: Tensor) -> None:
        x = x_VF.double()
        moments = torch.stack([torch.full_like(self.mean, len(x), dtype=x.dtype), x.sum(0), x.square().sum(0)])
        count, total, squares = mean_over_ranks(moments)
        if count[0] == 0:  # no image in any first batch
            return
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation, 1.0))
        self.measured.fill_(True)


class ConditionedAttention(nn.Module):
    """Self-attention whose queries and keys also see a condition: ``q, k = W [u; c]``, ``v = W u``; no biases."""

    def __init__(self, dim: int, condition_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim + condition_dim, dim + condition_dim, bias=False)
        self.k_proj = nn.Linear(dim + condition_dim, dim + condition_dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, u_VD: Tensor, condition_VC: Tensor, turn: Turn, padding: Padding, log_gates_V: Tensor | None = None
    ) -> Tensor:
        """``[V, dim]``; tokens attend to those of their own group only, ``log_gates_V`` added to the logits of each."""
        both = torch.cat([u_VD, condition_VC], dim=-1)
        q = rotate(self.q_proj(both).unflatten(-1, (self.heads, -1)), turn)
        k = rotate(self.k_proj(both).unflatten(-1, (self.heads, -1)), turn)
        v = self.v_proj(u_VD).unflatten(-1, (self.heads, -1))
        mask = None if padding.mask is None else padding.mask[:, None, None, :]
        scale = q.shape[-1] ** -0.5
        if log_gates_V is not None:  # as one more dimension (eight, for the kernels): no map of all pairs
            bias = (log_gates_V / scale).to(k.dtype)[:, None, None].expand(-1, self.heads, 1)
            q, k = F.pad(F.pad(q, (0, 1), value=1.0), (0, 7)), F.pad(torch.cat([k, bias], -1), (0, 7))
        q, k, v = (padding.pad(x).transpose(1, 2) for x in (q, k, v))
        # Kernels without a map of all pairs need values as wide as queries and keys.
        wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        out = F.scaled_dot_product_attention(q, k, wide, attn_mask=mask, scale=scale)[..., : v.shape[-1]]
        return self.o_proj(padding.unpad(out.transpose(1, 2)).flatten(1))


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))`` with biases, inner width ``2 * dim``."""

    def __init__(self, dim: int, activation: str = "silu") -> None:
        super().__init__()
        self.act = ACT2FN[activation]
        self.gate_proj = nn.Linear(dim, 2 * dim)
        self.up_proj = nn.Linear(dim, 2 * dim)
        self.down_proj = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class VIPLayer(nn.Module):
    """Pre-norm conditioned attention and MLP."""

    def __init__(self, dim: int, condition_dim: int, heads: int, activation: str = "silu") -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=EPS)
        self.attn = ConditionedAttention(dim, condition_dim, heads)
        self.norm2 = nn.RMSNorm(dim, eps=EPS)
        self.mlp = GatedMLP(dim, activation)

    def forward(
        self, x_VD: Tensor, condition_VC: Tensor, turn: Turn, padding: Padding, log_gates_V: Tensor | None = None
    ) -> Tensor:
        x_VD = x_VD + self.attn(self.norm1(x_VD), condition_VC, turn, padding, log_gates_V)
        return x_VD + self.mlp(self.norm2(x_VD))


class VIPNetwork(nn.Module):
    """Attention features and vision states in, importance logits out (reference: ``AttnFuserV1``).

    Args:
        features: attention features per token.
        vision_dim: width of the vision states.
        conditions: number of vision states, hence of layers.
        dim, condition_dim, heads: widths of the layers.
        deep_supervision: whether every layer gets an output head, not only the last.
        fusion: whether the network has layers; if false, the output head follows the input projection.
        activation: activation function of the layers' gated MLPs.
    """

    def __init__(
        self,
        features: int,
        vision_dim: int,
        conditions: int,
        dim: int,
        condition_dim: int,
        heads: int,
        deep_supervision: bool,
        fusion: bool = True,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.attn_in_proj = nn.Linear(features, dim)
        if not fusion:
            conditions = 0
            self.head = nn.Linear(dim, 1)
        self.cond_in_projs = nn.ModuleList(nn.Linear(vision_dim, condition_dim) for _ in range(conditions))
        self.layers = nn.ModuleList(VIPLayer(dim, condition_dim, heads, activation) for _ in range(conditions))
        self.attn_out_projs = nn.ModuleList(
            nn.Linear(dim, 1) if deep_supervision or i == conditions - 1 else nn.Identity() for i in range(conditions)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def start_at_zero(self) -> None:
        """Set the heads to zero, so that untrained logits are 0."""
        for head in [*self.attn_out_projs, *([] if self.layers else [self.head])]:
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)

    def forward(
        self,
        features_VF: Tensor,
        conditions: Sequence[Tensor],
        angle_VE: Tensor,
        padding: Padding,
        log_gates_V: Tensor | None = None,
    ) -> list[Tensor]:
        """Logits ``[V]`` of every layer that has a head, in the order of the layers.

        Args:
            features_VF: attention features.
            conditions: vision states ``[V, vision_dim]`` for each layer.
            angle_VE: rotation angles of queries and keys.
            padding: packing and padding of each image's tokens.
            log_gates_V: log of each token's gate; ``None``: all gates are open.
        """
        x = self.attn_in_proj(features_VF)
        if not self.layers:
            return [self.head(x).squeeze(-1)]
        rows, turn = [], turn_by(angle_VE)
        parts = zip(self.cond_in_projs, self.layers, self.attn_out_projs, conditions, strict=True)
        for project, layer, head, condition in parts:
            x = layer(x, project(condition), turn, padding, log_gates_V)
            if isinstance(head, nn.Linear):
                rows.append(head(x).squeeze(-1))
        return rows
