"""FLOPs of a training step by counting: with shared trunk and side streams, and the straightforward way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from glimpse_lightning.core.visual_tokens import ModelFacts

MASK, MASK_ANSWERS, KL = STEPS = "mask", "mask_with_answers", "kl"
"""Evidence boxes; the same with the language-modelling loss of the answers after the glimpse; distillation."""

_GATE_MULTIPLE = 8


@dataclass(frozen=True)
class StepCase:
    """A training step on equally long prompts.

    ``P`` are the FLOPs of a decoder layer's projections and MLP on one token, ``Q = H d``. A layer over ``n`` rows that
    see ``m`` keys costs ``n P + 4 n m Q`` forward. With frozen weights it costs ``n P + 10 n m Q`` backward: gradients
    of inputs only, and five products of attention in place of two. Soft gates widen heads of ``d`` to ``d + 8``.

    Attributes:
        facts: sizes of the model.
        after_layer: K, the last layer that sees all tokens.
        batch, prompt, answer: number of prompts; tokens of each prompt, and of each answer.
        vocabulary: rows of the language-model head.
        scorer: FLOPs of the scorer, forward and backward.
        vision: FLOPs of the vision tower and the embedding, where they are a part of the step.
    """

    facts: ModelFacts
    after_layer: int
    batch: int
    prompt: int
    answer: int
    vocabulary: int
    scorer: float = 0.0
    vision: float = 0.0

    def ours(self, step: str) -> float:
        """FLOPs of the package's step: no backward pass up to K for the prompt, and those layers shared by teacher and
        student.
        """
        layers, early = self.facts.num_layers, self.after_layer + 1
        late, n, rows = layers - early, self.prompt, self.answer - 1
        trunk, glimpse = self._layers(early, n, n), self._layers(early, 1, n + 1, backward=True)
        if step == MASK:
            return self._total(trunk + glimpse - self._tail(1, n + 1))
        if step == MASK_ANSWERS:
            stream = self._layers(layers, 1 + rows, n + 1 + rows, backward=True)
            return self._total(self._layers(layers, n, n) + stream + self._head(backward=True))
        teacher = self._layers(late, n, n) + self._layers(layers, rows, n + rows) + self._head()
        student = self._layers(late, n, n, True, True) + self._layers(layers, rows, n + rows, True, True)
        saved = self._inputs(n) * (late > 0) + self._inputs(rows)  # nothing trained lies before these rows' first layer
        return self._total(trunk + glimpse - self._tail(1, n + 1) + teacher + student - saved + self._head(True))

    def straightforward(self, step: str) -> float:
        """FLOPs over whole sequences with the glimpse in them; for distillation, a pass each for scores, teacher and
        student.
        """
        layers, n, rows = self.facts.num_layers, self.prompt, self.answer - 1
        scores = self._layers(self.after_layer + 1, n + 1, n + 1, backward=True) - self._tail(n + 1, n + 1)
        if step == MASK:
            return self._total(scores)
        if step == MASK_ANSWERS:
            sequence = self._layers(layers, n + 1 + rows, n + 1 + rows, backward=True)
            return self._total(sequence + self._head(backward=True))
        teacher = self._layers(layers, n + rows, n + rows) + self._head()
        student = self._layers(layers, n + rows, n + rows, True, True) - self._inputs(n + rows) + self._head(True)
        return self._total(scores + teacher + student)

    def gain(self, step: str) -> float:
        """Theoretical ratio of the straightforward step's FLOPs to the package's."""
        return self.straightforward(step) / self.ours(step)

    def with_vision(self, flops: float) -> StepCase:
        """The same step with the vision tower's forward pass in it."""
        return replace(self, vision=flops)

    @property
    def _queries(self) -> int:
        return self.facts.num_heads * self.facts.head_dim

    @property
    def _token(self) -> float:
        return self.facts.layer_flops(1) - 4 * self._queries

    def _layers(self, count: int, rows: int, keys: int, backward: bool = False, gated: bool = False) -> float:
        d = self.facts.head_dim
        width = (d + 1 + -(d + 1) % _GATE_MULTIPLE) / d if gated else 1.0
        attention = 4 * rows * keys * self._queries * width
        return count * (rows * self._token * (1 + backward) + attention * (1 + 2.5 * backward))

    def _inputs(self, rows: int) -> float:
        """Backward through the query, key and value projections of one layer, into its inputs."""
        widths = self._queries + 2 * self.facts.num_kv_heads * self.facts.head_dim
        return 2.0 * rows * self.facts.hidden_size * widths

    def _tail(self, rows: int, keys: int) -> float:
        """FLOPs that backward leaves out in layer K, where only queries and keys of the glimpse's attention row are
        trained: all but their projections.
        """
        values = 2 * rows * self.facts.hidden_size * self.facts.num_kv_heads * self.facts.head_dim
        return rows * self._token + 10 * rows * keys * self._queries - self._inputs(rows) + values

    def _head(self, backward: bool = False) -> float:
        return 2.0 * self.answer * self.facts.hidden_size * self.vocabulary * (1 + backward)

    def _total(self, each: float) -> float:
        return self.batch * each + self.scorer + self.vision
