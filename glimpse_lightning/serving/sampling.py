"""Draws of tokens that do not depend on the other rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from glimpse_lightning.serving.chat_request import Sampling


class RowSampling(LogitsProcessor):
    """Logits ``[B, vocab]`` whose largest value is a draw, by settings and seed of each row.

    The largest of ``logits / temperature`` plus Gumbel noise is distributed as a token of their softmax (Maddison et
    al., arXiv 1411.0030). Noise comes of a generator of the row's own, so that a request with a seed is answered in the
    same way alone and among others, while decoding is greedy for all of them. Rows with temperature 0 are unchanged.

    Args:
        rows: settings of each row.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self.rows = [(row, _generator(row.seed)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if all(row.temperature == 0 for row, _ in self.rows):
            return scores
        drawn = scores.float().clone()
        for number, (row, generator) in enumerate(self.rows):
            if row.temperature > 0:
                drawn[number] = _drawn(drawn[number] / row.temperature, row, generator)
        return drawn


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _drawn(logits: Tensor, row: Sampling, generator: torch.Generator) -> Tensor:
    """One row's logits with noise; ``-inf`` where ``top_k`` or ``top_p`` exclude a token."""
    if 0 < row.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(row.top_k).values[-1], -torch.inf)
    if row.top_p < 1:
        order = logits.sort(descending=True)
        chances = order.values.softmax(-1)
        over = chances.cumsum(-1) - chances >= row.top_p
        over[0] = False
        logits = logits.masked_fill(torch.zeros_like(over).scatter(0, order.indices, over), -torch.inf)
    uniform = torch.rand(len(logits), generator=generator).clamp(1e-20, 1 - 1e-7).to(logits.device)
    return logits - (-uniform.log()).log()


def settings_of(config: GenerationConfig) -> Sampling:
    """How a checkpoint's answers are drawn where a request says nothing, as Hugging Face's ``generate`` would."""
    if not config.do_sample:
        return Sampling()
    top_k = 50 if config.top_k is None else config.top_k
    return Sampling(
        1.0 if config.temperature is None else config.temperature, 1.0 if config.top_p is None else config.top_p, top_k
    )
