"""Training forwards: in training, tokens see the columns that they will see in decoding.

The KV cache is compacted in *all* layers, so answer tokens miss the dropped tokens from layer 0 on, while prompt
tokens miss them only after the stage's layer ``K``. (Where a stage keeps the keys and values of early layers, answer
tokens, too, miss them only after ``K``.) Up to ``K`` the prompt is exactly the frozen model's and needs no gradient:
only the glimpse stream and the scorer do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.core.token_counts import stages_passed
from glimpse_lightning.core.visual_tokens import LOG_GATES, VisualTokens
from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import fork_cache
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.stage_loop import new_stage_runs, run_layer_with_stages, stages_in_turn
from glimpse_lightning.engine.stage_run import StageRun
from glimpse_lightning.engine.streams import SideStream, run_continuation
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.pruner.pruner import Pruner
    from glimpse_lightning.pruner.stage import PruneStage

Gate = Callable[[Tensor, VisualTokens], Tensor]
"""From scores ``[V]`` to the natural log of soft keep gates ``[V]``, at most 0; ``-inf`` = closed altogether."""

CLOSED = -1e4
"""Logit bias of a closed gate: its key gets no weight, and products with the bias stay finite."""


@dataclass
class StageOutput:
    """A stage's differentiable scores.

    Attributes:
        scores: ``[V]`` logits or numbers of the scorer, higher = keep.
        tokens: the scorer's input.
        answer_logits: ``[B, A, vocab]`` predictions of the answer tokens by the stream [glimpse, answer]; ``None``
            unless asked for.
    """

    scores: Tensor
    tokens: VisualTokens
    answer_logits: Tensor | None = None


@dataclass
class DistillOutput:
    """Predictions of the answer tokens with all visual tokens, and with softly gated ones.

    Attributes:
        teacher_logits, student_logits: ``[B, A, vocab]``.
        stages: the stages' scores, one output per stage.
        log_gates: one ``[V]`` per stage.
    """

    teacher_logits: Tensor
    student_logits: Tensor
    stages: list[StageOutput]
    log_gates: list[Tensor]


def glimpse_forward(
    decoder: Decoder, pruner: Pruner | None, prompt: Prompt, batch: Batch, answers: bool = False
) -> list[StageOutput]:
    """Scores of every stage over the unpruned prompt, with gradients to the pruner.

    With ``answers`` the answer tokens follow the glimpse, as in the reference's stage 1: they attend to it and
    to the whole prompt through all layers, and the glimpse predicts the first of them.
    """
    trunk, request, runs = _start(decoder, pruner, prompt, batch)
    rows = batch.answer_ids[:, :-1] if answers else None
    if rows is not None:
        for run in runs:
            _append_answers(run, trunk, rows, batch.answer_mask[:, :-1].bool())
    outputs: list[StageOutput] = []
    waiting, num_layers = list(runs), len(decoder.layers)
    last = num_layers if answers else 1 + max((min(run.stage.after_layer, num_layers - 1) for run in runs), default=-1)
    run_layer = partial(run_layer_with_stages, trunk=trunk, runs=runs if answers else waiting, frozen=True)
    for run in stages_in_turn(waiting, last, run_layer):
        tokens = run.tokens(trunk, request, {})
        outputs.append(StageOutput(run.scorer(tokens), tokens))
    for run, output in zip(runs, outputs, strict=True):
        if answers and run.stream is not None and run.scorer.glimpse is not None:
            hidden = run.stream.hidden[:, run.scorer.glimpse.length - 1 :]
            output.answer_logits = decoder.logits(hidden)
    return outputs


def distill(decoder: Decoder, pruner: Pruner | None, prompt: Prompt, batch: Batch, gate: Gate) -> DistillOutput:
    """Teacher and student predictions of the answer tokens.

    Four passes, three of them without gradient or short: (1) trunk, the prompt through 0..K; (2) glimpse stream and
    scorer; (3) teacher, prompt K+1..L and answers 0..L, ungated; (4) student, the same with ``log g`` added to the
    attention logits of gated keys. After the last stage, tokens that any of them has closed altogether leave the
    student as dropped ones leave a prefill: a step gets cheaper as fewer are kept. Before it they stay, so that later
    stages score tokens that earlier ones have closed. They have no weight in attention, no place in a sliding window
    and no effect on the scores of open tokens, which equal those of a prefill.

    Raises:
        GlimpseError: where a stage renumbers positions: these follow from the kept tokens, and soft gates keep all.
    """
    stages = [] if pruner is None else pruner.stages
    if any(stage.positions == "renumber" for stage in stages):
        raise GlimpseError(
            "Soft gates cannot be trained where a stage renumbers positions, which only hard decisions define; train "
            "with `positions: keep`, or by an objective that samples answers (GRPO)."
        )
    trunk, request, runs = _start(decoder, pruner, prompt, batch)
    num_layers, total = len(trunk.decoder.layers), len(trunk.layout.item)
    outputs: list[StageOutput] = []
    log_gates: list[Tensor] = []
    biases = [trunk.hidden.new_zeros(total)]  # after no stage, after the first one, ...
    student: Trunk | None = None
    key_bias: Tensor | None = None  # of the student's columns, after the stages so far

    def run_layer(layer: int) -> None:
        if student is None:
            return run_layer_with_stages(layer, trunk, runs, frozen=True)
        with torch.no_grad():
            trunk.run_layer(layer)
        run_layer_with_stages(layer, student, runs, key_bias)

    for run in stages_in_turn(runs, num_layers, run_layer):
        student = _fork(trunk) if student is None else student
        tokens = run.tokens(student, request, {LOG_GATES: biases[-1]} if outputs else {})
        scores = _scores(run, tokens, biases[-1]) if outputs else run.scorer(tokens)
        outputs.append(StageOutput(scores, tokens))
        log_gates.append(gate(scores, tokens).masked_fill(trunk.at_end, 0.0))
        biases.append((biases[-1] + log_gates[-1].to(biases[-1].dtype)).clamp(min=CLOSED))
        if runs:
            student.count(_open(log_gates))
            for later in runs:
                if later.stream is not None:
                    later.stream.set_prompt(student.columns, student.counted)
        else:
            _compact(student, stages, log_gates)
        key_bias = student.columns.spread(biases[-1])
    student = _fork(trunk) if student is None else student
    with torch.no_grad():
        teacher_logits = _continued(trunk, batch, None)
    passed = stages_passed([(stage.after_layer, stage.early_kv) for stage in stages], num_layers)
    student_logits = _continued(student, batch, [biases[index] for index in passed])
    return DistillOutput(teacher_logits, student_logits, outputs, log_gates)


def _scores(run: StageRun, tokens: VisualTokens, bias_V: Tensor) -> Tensor:
    """Scores ``[V]`` of a stage after others, whose gates' logs are ``bias_V``.

    Where a scorer does not read gates itself, open tokens are scored apart, as if only they were there.
    """
    scores = run.scorer(tokens)
    if run.scorer.heeds_gates:
        return scores
    is_open = bias_V > CLOSED
    open_tokens = replace(tokens.subset(is_open), state={LOG_GATES: bias_V[is_open]})
    return scores.masked_scatter(is_open, run.scorer(open_tokens))


def _open(log_gates: Sequence[Tensor]) -> Tensor:
    """``[V]`` the tokens that no stage has closed altogether."""
    return torch.stack(list(log_gates)).detach().amin(0) > -torch.inf


def _compact(student: Trunk, stages: Sequence[PruneStage], log_gates: Sequence[Tensor]) -> None:
    """Drop closed tokens, from the layers that would not hold them in a prefill."""
    missing: dict[int, list[Tensor]] = {}  # by the first layer without them
    for index, (stage, gates) in enumerate(zip(stages, log_gates, strict=True)):
        everywhere = any(later.early_kv == "prune" for later in stages[index:])
        missing.setdefault(0 if everywhere else stage.after_layer + 1, []).append(gates)
    for first, closed in missing.items():
        student.compact(_open(closed), None, first)


def _start(
    decoder: Decoder, pruner: Pruner | None, prompt: Prompt, batch: Batch
) -> tuple[Trunk, PrefillRequest, list[StageRun]]:
    request = PrefillRequest.of(prompt, batch, shared_prefix=SharedPrefix.of(decoder, prompt))
    trunk = Trunk.start(decoder, prompt, request.shared_prefix)
    return trunk, request, new_stage_runs(pruner, trunk)


def _append_answers(run: StageRun, trunk: Trunk, ids: Tensor, mask: Tensor) -> None:
    """Rows ``[B, A]`` of answer tokens after the glimpse; the answer's positions then follow the glimpse's."""
    glimpse, decoder = run.scorer.glimpse, trunk.decoder
    if run.glimpse is None or glimpse is None or ids.shape[1] == 0:
        return
    embeds = decoder.model.get_input_embeddings()(ids)
    rows = torch.cat([trunk.hidden.new_zeros(len(ids), glimpse.length, embeds.shape[-1]), embeds], 1)
    rows_mask = torch.cat([mask.new_ones(len(ids), glimpse.length), mask], 1)
    steps = torch.arange(1, rows.shape[1] + 1, device=ids.device)
    run.glimpse.stream = SideStream(decoder, rows, rows_mask, trunk.mask, trunk.position_ids[..., -1:] + steps)


def _fork(trunk: Trunk) -> Trunk:
    """A second main stream that starts from the states so far; keys and values so far are shared."""
    return Trunk(
        trunk.decoder, trunk.prompt, trunk.layout, trunk.hidden, trunk.columns, trunk.alive, fork_cache(trunk.cache),
        dict(trunk.masks), trunk.positions,
    )  # fmt: skip


def _continued(trunk: Trunk, batch: Batch, bias_V: Sequence[Tensor] | None) -> Tensor:
    """``[B, A, vocab]`` predictions of the answer tokens from a finished main stream.

    Args:
        bias_V: by layer, logs of the gates that the answer tokens see.
    """
    hidden = [trunk.hidden[:, -1:]]
    ids = batch.answer_ids[:, :-1]
    if ids.shape[1] > 0:
        rows = trunk.decoder.model.get_input_embeddings()(ids)
        hidden.append(run_continuation(trunk.decoder, trunk.cache, rows, batch.answer_mask[:, :-1].bool(), bias_V))
    return trunk.decoder.logits(torch.cat(hidden, 1))
