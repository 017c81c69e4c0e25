"""Training steps the straightforward way: the glimpse inside the sequence, and autograd through all of it.

They give the same losses and gradients as the package's own steps, from the same weights, without the side streams and
the shared trunk that make a step cheap. Benchmarks measure against them, and tests compare with them.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``R`` rows after it, ``D`` width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.engine.distillation import CLOSED, DistillOutput, Gate, StageOutput
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import PromptCache
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.stage_run import StageRun
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.pruner.pruner import Pruner
    from glimpse_lightning.pruner.stage import PruneStage


class _NoCache(PromptCache):
    """Returns a layer's own keys and values: a pass over a whole sequence needs no cache."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        return key_states, value_states


class StraightforwardVLM(PrunedVLM):
    """A ``PrunedVLM`` whose training forwards run whole sequences; the objectives take it as any other.

    Raises:
        GlimpseError: where the pruner is not one stage whose scorer has a glimpse token.
    """

    def __init__(self, backbone: Backbone, pruner: Pruner) -> None:
        super().__init__(backbone, pruner)
        self._stage()

    def glimpse_forward(self, batch: Batch, answers: bool = False) -> list[StageOutput]:
        """As ``PrunedVLM.glimpse_forward``, over the one sequence [prompt, glimpse, answers]."""
        stage, glimpse = self._stage()
        prompt = self._prompt(batch)
        rows = self._answers(batch) if answers else self._answers(batch)[:, :0]
        mask = batch.answer_mask[:, : rows.shape[1]].bool()
        columns, length = prompt.mask.shape[1], glimpse.length
        room = rows.new_zeros(len(rows), length, rows.shape[-1])
        behind = torch.cat([mask.new_ones(len(mask), length), mask], 1)
        sequence = _sequence(self, _behind(prompt, torch.cat([room, rows], 1), behind))
        run = StageRun(stage, sequence)
        seen = sequence.mask.clone()
        end = columns + length
        seen[:, end:] = False  # the glimpse comes before the answers
        places = torch.arange(columns, end, device=seen.device)
        output: StageOutput | None = None
        entering = glimpse()
        last = min(stage.after_layer, len(self.backbone.layers) - 1)
        for layer in range(len(self.backbone.layers) if answers else last + 1):
            vectors = entering.get(layer)
            if vectors is not None:
                added = vectors.to(sequence.hidden.dtype).expand(len(rows), -1, -1)
                sequence.states = sequence.states.index_add(1, places, added)
            wanted = run.probes(layer, "glimpse")
            tap = AttentionTap(span=slice(end - 1, end)) if wanted else None
            sequence.run_layer(layer, tap)
            for name, probe in wanted:
                assert tap is not None and tap.logits is not None
                run.capture(name, probe, layer, sequence, tap.logits[:, :, 0], seen)
            if layer == last:
                tokens = run.tokens(sequence, PrefillRequest.of(prompt, batch), {})
                output = StageOutput(stage.scorer(tokens), tokens)
        assert output is not None
        if answers:
            output.answer_logits = self.backbone.logits(sequence.hidden[:, end - 1 :])
        return [output]

    def distill(self, batch: Batch, gate: Gate) -> DistillOutput:
        """As ``PrunedVLM.distill``: a pass for the scores, one for the teacher, and one for the student."""
        stage, _ = self._stage()
        batch = replace(batch, prompt=self._prompt(batch))
        (scored,) = self.glimpse_forward(batch)
        log_gates = gate(scored.scores, scored.tokens)
        answers, mask = self._answers(batch), batch.answer_mask[:, :-1].bool()
        first = batch.prompt.mask.shape[1] - 1
        whole = _behind(batch.prompt, answers, mask)
        teacher, student = _sequence(self, whole), _sequence(self, whole)
        bias = log_gates.to(student.hidden.dtype).clamp(min=CLOSED)  # rows that are not gated multiply it by 0
        key_bias = torch.cat([bias, bias.new_zeros(1)])[student.slot]
        # Up to K the prompt saw all tokens, while the answers read the kept ones in every layer's cache.
        late = torch.arange(whole.mask.shape[1], device=mask.device) > first
        for layer in range(len(self.backbone.layers)):
            with torch.no_grad():
                teacher.run_layer(layer)
            gated = late if layer <= stage.after_layer else None
            student.run_layer(layer, AttentionTap(key_bias=key_bias, bias_rows=gated))
        with torch.no_grad():
            teacher_logits = self.backbone.logits(teacher.hidden[:, first:])
        return DistillOutput(teacher_logits, self.backbone.logits(student.hidden[:, first:]), [scored], [log_gates])

    def _stage(self) -> tuple[PruneStage, GlimpseTokens]:
        stages = [] if self.pruner is None else list(self.pruner.stages)
        if len(stages) != 1 or stages[0].scorer.glimpse is None:
            raise GlimpseError(
                "Expected a pruner of one stage whose scorer has a glimpse token; measure training steps with "
                "`scorer: VIP`."
            )
        return stages[0], stages[0].scorer.glimpse

    def _prompt(self, batch: Batch) -> Prompt:
        with torch.no_grad():
            return self.embed(batch)

    def _answers(self, batch: Batch) -> Tensor:
        """``[B, A - 1, D]`` embeddings of all answer tokens but the last."""
        return self.model.get_input_embeddings()(batch.answer_ids[:, :-1])


def _behind(prompt: Prompt, rows: Tensor, mask: Tensor) -> Prompt:
    """The prompt with ``rows [B, R, D]`` as further text after it, at the positions that follow."""
    steps = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, rows], 1),
        mask=torch.cat([prompt.mask, mask], 1),
        position_ids=torch.cat([prompt.position_ids, prompt.position_ids[..., -1:] + steps], -1),
        visual=F.pad(prompt.visual, (0, rows.shape[1])),
    )


def _sequence(model: PrunedVLM, prompt: Prompt) -> Trunk:
    sequence = Trunk.start(model.backbone, prompt)
    sequence.cache = _NoCache()
    return sequence
