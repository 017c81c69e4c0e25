"""Synthetic visual tokens and prompts of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import ModelFacts, VisionAttention, VisionPixels, VisionTap, VisualTokens
from glimpse_lightning.scorers import AttentionProbe, Requires

FACTS = ModelFacts(
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_size=64,
    intermediate_size=128,
    rms_norm_eps=1e-6,
    vision_layers=4,
    vision_hidden_size=48,
    model_type="qwen2_5_vl",
)
"""Shape of the reference's golden Qwen model."""

TEXT_LENGTH = 4
"""Fewest text tokens of a sample."""

Grid = tuple[int, int, int]


def grid_positions(grid: Sequence[Grid]) -> Tensor:
    """``[V, 3]`` (t, row, column) of every token, in raster order."""
    ranges = [torch.cartesian_prod(*(torch.arange(n) for n in item)) for item in grid]
    return torch.cat(ranges) if ranges else torch.zeros(0, 3, dtype=torch.int64)


def visual_tokens(
    samples: Sequence[Sequence[Grid]],
    requires: Requires | None = None,
    facts: ModelFacts = FACTS,
    keys: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> VisualTokens:
    """Tokens of samples given as the grids of their items; contents are drawn per sample from its key."""
    requires = requires or Requires()
    keys = list(range(100, 100 + len(samples))) if keys is None else list(keys)
    grid = [item for sample in samples for item in sample]
    item_sample = torch.tensor([i for i, sample in enumerate(samples) for _ in sample], dtype=torch.int64)
    sizes = torch.tensor([t * h * w for t, h, w in grid], dtype=torch.int64)
    item = torch.arange(len(grid)).repeat_interleave(sizes)

    def draw(name: str, width: int, rows: int | None = None) -> Tensor:
        parts = [torch.zeros(0, width)]
        for key, sample in zip(keys, samples, strict=True):
            generator = torch.Generator().manual_seed(key + 1000 * sum(map(ord, name)))
            count = sum(t * h * w for t, h, w in sample) if rows is None else rows + key % 3
            parts.append(torch.randn(count, width, generator=generator))
        return torch.cat(parts).to(dtype)

    def draw_vision(tap: VisionTap) -> Tensor:
        if isinstance(tap, VisionAttention):
            return draw(str(tap), 1).exp()
        if isinstance(tap, VisionPixels):
            return draw("pixels", 12).round()  # so that neighbours may be equal
        return draw(f"vision{tap}", facts.vision_hidden_size)

    width, text, text_sample = facts.num_kv_heads * facts.head_dim, None, None
    if requires.text or requires.text_layers:
        text = draw("text", facts.hidden_size, TEXT_LENGTH) if requires.text else None
        counts = torch.tensor([TEXT_LENGTH + key % 3 for key in keys], dtype=torch.int64)
        text_sample = torch.arange(len(keys)).repeat_interleave(counts)

    def draw_probe(name: str, probe: AttentionProbe) -> Tensor:
        drawn = draw(name, len(probe.layers) * facts.num_heads).sub(3)
        if probe.scale != "information":
            return drawn
        first = [(item_sample[item] == sample).nonzero()[:1, 0] for sample in item_sample[item].tolist()]
        return drawn[torch.cat([torch.zeros(0, dtype=torch.int64), *first])].exp()  # alike within a sample

    return VisualTokens(
        embeds=draw("embeds", facts.hidden_size),
        hidden=draw("hidden", facts.hidden_size),
        item=item,
        sample=item_sample[item],
        grid=torch.tensor(grid, dtype=torch.int64).reshape(-1, 3),
        item_sample=item_sample,
        position=grid_positions(grid),
        key=torch.tensor(keys, dtype=torch.int64),
        facts=facts,
        probes={name: draw_probe(name, probe) for name, probe in requires.probes.items()},
        vision={tap: draw_vision(tap) for tap in requires.vision_layers},
        text=text,
        text_sample=text_sample,
        text_states={n: draw(f"text {n}", facts.hidden_size, TEXT_LENGTH) for n in requires.text_layers},
        keys=draw("keys", width) if requires.keys else None,
        text_keys=draw("text keys", width, TEXT_LENGTH) if requires.keys and requires.text else None,
        questions=tuple(f"question {key}?" for key in keys),
    )


def with_inputs(tokens: VisualTokens, probes: dict[str, Tensor], vision: dict[int, Tensor]) -> VisualTokens:
    """The same tokens with other inputs of a scorer."""
    return replace(tokens, probes=probes, vision=vision)
