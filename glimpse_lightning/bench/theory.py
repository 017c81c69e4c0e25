"""Theoretical costs and savings of pruning, by counting: the values next to every measured one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glimpse_lightning.core.token_counts import StageTokens, cached_per_layer, tokens_per_layer
from glimpse_lightning.core.visual_tokens import ModelFacts


@dataclass(frozen=True)
class Case:
    """A batch of equally long prompts, and the tokens that the stages of a pruner leave of them.

    Attributes:
        facts: sizes of the model.
        batch: number of prompts.
        visual, text: visual and other tokens of each prompt.
        stages: the prune stages, in order, with the visual tokens of a prompt left after each.
        vocabulary: rows of the language-model head.
        element: bytes of a number.
        glimpse: tokens that run along after each prompt, through layers ``0..glimpse_layer``; no cache keeps them.
    """

    facts: ModelFacts
    batch: int
    visual: int
    text: int
    stages: Sequence[StageTokens]
    vocabulary: int
    element: int
    glimpse: int = 0
    glimpse_layer: int = -1

    @property
    def prompt_layers(self) -> list[int]:
        """Tokens of a prompt that each decoder layer runs on."""
        return [visual + self.text for visual in tokens_per_layer(self.visual, self.stages, self.facts.num_layers)]

    @property
    def layers(self) -> list[int]:
        """Tokens that each decoder layer runs on for a prompt, glimpse included."""
        return [n + self.glimpse * (layer <= self.glimpse_layer) for layer, n in enumerate(self.prompt_layers)]

    @property
    def cached_layers(self) -> list[int]:
        """Tokens of a prompt that decoding sees in each layer."""
        return [n + self.text for n in cached_per_layer(self.visual, self.stages, self.facts.num_layers)]

    @property
    def cached(self) -> float:
        """Tokens of a prompt that decoding sees, averaged over the layers."""
        return sum(self.cached_layers) / self.facts.num_layers

    @property
    def head_flops(self) -> float:
        """``2 B h V`` FLOPs of the head at the last position of each prompt."""
        return 2.0 * self.batch * self.facts.hidden_size * self.vocabulary

    def prefill_flops(self) -> tuple[float, float]:
        """FLOPs of the decoder (up to K, after K); the head counts where the last layer does.

        ``B sum_l C(n_l)`` with ``C`` of :meth:`ModelFacts.layer_flops` and ``n_l`` tokens in layer ``l``.
        """
        split = self.stages[0].after_layer + 1 if self.stages else self.facts.num_layers
        each = [self.batch * self.facts.layer_flops(tokens) for tokens in self.layers]
        before, after = sum(each[:split]), sum(each[split:])
        return (before, after + self.head_flops) if self.stages else (before + self.head_flops, 0.0)

    def kv_bytes(self, more: float = 0.0) -> float:
        """Bytes of the cache: ``2 H_kv d`` numbers for each token that a layer caches, and for ``more`` tokens in each
        sample and layer.
        """
        tokens = sum(self.cached_layers) + self.facts.num_layers * more
        return 2 * self._kv_width * tokens * self.batch * self.element

    @property
    def _kv_width(self) -> int:
        return self.facts.num_kv_heads * self.facts.head_dim

    def decode_bytes(self, weights: float, more: float) -> float:
        """Bytes that one decoding step reads: the decoder's ``weights`` (bytes), and the KV cache.

        The roofline model of decoding (Williams et al., 2009), which is bound by memory at small batches.
        """
        return weights + self.kv_bytes(more)

    def peak_bytes(self) -> float:
        """The most that prefill must hold at once above the weights, in bytes.

        In layer ``l`` with ``n_l`` tokens: keys and values of the layers so far (at the lengths they then have), the
        residual stream and one normed copy of it (``2 h``), and gate, up and product of the MLP (``3 I``). Not
        counted: the vision tower, the workspace of kernels, and logits.
        """
        facts, most, layers = self.facts, 0.0, self.layers
        for layer, tokens in enumerate(layers):
            so_far = [stage for stage in self.stages if stage.after_layer < layer]
            held = sum(cached_per_layer(self.visual, so_far, layer + 1)) + self.text * (layer + 1)
            numbers = 2 * self._kv_width * held + tokens * (2 * facts.hidden_size + 3 * facts.intermediate_size)
            most = max(most, float(numbers))
        return most * self.batch * self.element
