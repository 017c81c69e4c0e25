"""Pruned prefill: how a decoder runs over a prompt while visual tokens leave it.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns left, ``V`` visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.glimpse_run import GlimpseRun
from glimpse_lightning.engine.prompt import Prompt, TokenLayout
from glimpse_lightning.engine.prompt_cache import PromptCache, fork_cache
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.stage_run import StageRun
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.segments import repeated_segments, segment_count
from glimpse_lightning.token_places import frame_retention
from glimpse_lightning.visual_tokens import VisualTokens

if TYPE_CHECKING:
    from glimpse_lightning.pruner import Pruner, PruneStage

Select = Callable[["PruneStage", Tensor, VisualTokens], Tensor]
"""Which tokens a stage keeps, in place of its policy: from scores ``[V]`` to a boolean mask ``[V]``."""


@dataclass
class PrefillOutput:
    """A prompt after prefill; what decoding continues from.

    Attributes:
        scores: one per stage, ``[V]``, higher = keep; ``-inf`` for tokens an earlier stage dropped.
        keep: one per stage, ``[V]`` boolean over all visual tokens of the batch, sample by sample, item by item. True
            of a token at the very end of a prompt, whatever the policy says: decoding goes on from there.
        prompt_keep: ``[B, N]`` true where a prompt position survived all stages, in the caller's layout; false at
            padding.
        logits: ``[B, vocab]`` at the last prompt position.
        position_ids: ``[..., B, M]`` positions of the kept columns in the last layer: the original ones, unless a
            stage renumbered them.
        attention_mask: ``[B, M]`` long, 0 at padding (on the left).
        cache: keys and values: ``M`` columns in every layer, or more in early ones where a stage kept these.
        tokens: where the visual tokens belong.
        hidden: ``[B, M, D]`` behind the last layer, before the final norm; ``None`` unless asked for.
        column: ``[B, M]`` each column's place in the left-padded prompt; likewise.
        prompt_ids, prompt_mask: ``[B, N]`` the unpruned prompt, padded on the left, for what looks at it while
            decoding (repetition penalties); ``None`` where only an embedded prompt is known.
    """

    scores: list[Tensor]
    keep: list[Tensor]
    prompt_keep: Tensor
    logits: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    cache: PromptCache
    tokens: TokenLayout
    hidden: Tensor | None = None
    column: Tensor | None = None
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None

    def kept(self) -> Tensor:
        """``[V]`` which visual tokens survived all stages."""
        keep = torch.ones_like(self.tokens.item, dtype=torch.bool)
        for stage in self.keep:
            keep = keep & stage
        return keep

    def frame_retention(self) -> list[Tensor]:
        """Share of visual tokens that survived all stages in each frame: for each item (image, video) ``[t]``."""
        return frame_retention(self.kept(), self.tokens.item, self.tokens.position, self.tokens.grid)

    def fork(self, repeats: int = 1) -> PrefillOutput:
        """A copy that decoding may grow, each sample repeated ``repeats`` times; this one stays reusable.

        Per-token facts (``scores``, ``keep``, ``tokens``, ``prompt_keep``) stay those of the samples themselves.
        """
        batch_axis = self.position_ids.ndim - 2
        return replace(
            self,
            logits=self.logits.repeat_interleave(repeats, 0),
            position_ids=self.position_ids.repeat_interleave(repeats, batch_axis),
            attention_mask=self.attention_mask.repeat_interleave(repeats, 0),
            cache=fork_cache(self.cache, repeats),
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids.repeat_interleave(repeats, 0),
            prompt_mask=None if self.prompt_mask is None else self.prompt_mask.repeat_interleave(repeats, 0),
        )


def new_stage_runs(pruner: Pruner | None, trunk: Trunk, scored: bool = True, trained: bool = True) -> list[StageRun]:
    """One run per stage, also where there is no visual token to prune: in training, ranks must not differ in what they
    reduce.

    Args:
        trained: false where no gradient is wanted: then the first glimpse tokens ride in the trunk.
    """
    if pruner is None:
        return []
    runs: list[StageRun] = []
    glimpse: GlimpseRun | None = None
    for stage in pruner.stages:
        runs.append(StageRun(stage, trunk, glimpse, scored, rides=not trained and glimpse is None))
        glimpse = runs[-1].glimpse or glimpse
    return runs


def run_layer_with_stages(
    layer: int, trunk: Trunk, runs: Sequence[StageRun], key_bias: Tensor | None = None, frozen: bool = False
) -> None:
    """One decoder layer of the main stream, and of the glimpse streams of the stages still ahead.

    Args:
        key_bias: ``[B, M]`` log of soft gates on the prompt's columns.
        frozen: the main stream needs no gradient; the glimpse streams keep theirs.
    """
    if not runs and key_bias is None:  # nothing to look for
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return trunk.run_layer(layer)
    end, last = trunk.hidden.shape[1], any(run.probes(layer, "last") for run in runs)
    rider = next((run.rider for run in runs if run.rider is not None), None)
    if rider is not None:
        rider.enter(layer, trunk)
    ridden = rider is not None and layer in rider.wanted
    span = slice(end - last, end + trunk.tail * ridden) if last or ridden else None
    rows = _text_rows(trunk, [run.raters for run in runs if run.raters is not None and run.probes(layer, "text")])
    tap = AttentionTap(span=span, key_bias=key_bias, rows=rows)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        trunk.run_layer(layer, tap if span is not None or rows is not None or key_bias is not None else None)
    if rider is not None:
        rider.leave(tap)
    for run in runs:
        run.after_main_layer(layer, trunk, tap, key_bias)


def _text_rows(trunk: Trunk, raters: Sequence[Tensor]) -> Tensor | None:
    """``[B, R]`` columns that hold any of the ``raters [B, N]`` (and, in samples with fewer, some that do not)."""
    if not raters:
        return None
    wanted = torch.stack(list(raters)).any(0).gather(1, trunk.column) & trunk.mask
    most = max(1, int(wanted.sum(1).max()))
    return wanted.to(torch.uint8).argsort(dim=1, stable=True)[:, wanted.shape[1] - most :]


def run_prefill(
    decoder: Decoder,
    pruner: Pruner | None,
    prompt: Prompt,
    key: Tensor,
    questions: Sequence[str],
    boxes: Sequence[Any] = (),
    state: dict[str, Any] | None = None,
    select: Select | None = None,
    shared: SharedPrefix | None = None,
    scored: bool = True,
    copies: int = 1,
    with_hidden: bool = False,
) -> PrefillOutput:
    """Run the prompt through the decoder; each stage drops its tokens from hidden states and all caches so far.

    Args:
        state: what the first stage finds in ``VisualTokens.state``.
        select: what decides in place of the stages' policies.
        shared: how the samples' common prefixes are run only once, up to the first stage.
        scored: false where ``select`` and the stages' reducers look at no score: then nothing is scored, and scores are
            zeros.
        copies: run each prompt so many times, in a row, for a ``select`` that does not do the same with all of them.
            What the first stage's scorer says of one copy it says of all.
        with_hidden: whether the output holds the last layer's states.
    """
    if copies > 1:
        prompt, key = prompt.repeated(copies), key.repeat_interleave(copies)
        questions, boxes = ([each for each in group for _ in range(copies)] for group in (questions, boxes))
    trunk = Trunk.start(decoder, prompt, shared)
    waiting = new_stage_runs(pruner, trunk, scored, torch.is_grad_enabled())
    scores: list[Tensor] = []
    keep: list[Tensor] = []
    state = dict(state or {})
    num_layers = len(decoder.layers)
    for layer in range(-1, num_layers):
        if layer >= 0:
            run_layer_with_stages(layer, trunk, waiting)
        while waiting and (waiting[0].stage.after_layer == layer or layer == num_layers - 1):
            run = waiting.pop(0)
            alike = 1 if scores else copies  # until the first stage has pruned
            tokens = run.tokens(trunk, key, questions, state, boxes)
            if trunk.tail and not any(later.rider for later in waiting):
                trunk.drop_tail()
            stage_scores, stage_keep = _prune(run, trunk, tokens, select, alike)
            scores.append(stage_scores)
            keep.append(stage_keep)
            for later in waiting:
                if later.stream is not None:
                    later.stream.set_prompt(trunk.columns)
    return PrefillOutput(
        scores=scores,
        keep=keep,
        prompt_keep=trunk.prompt_keep(),
        logits=decoder.logits(trunk.hidden[:, -1]),
        position_ids=trunk.position_ids,
        attention_mask=trunk.mask.long(),
        cache=trunk.cache,
        tokens=trunk.layout,
        hidden=trunk.hidden if with_hidden else None,
        column=trunk.column if with_hidden else None,
    )


def _prune(
    run: StageRun, trunk: Trunk, tokens: VisualTokens, select: Select | None, alike: int
) -> tuple[Tensor, Tensor]:
    scores = _scores(run, tokens, alike) if run.scored else trunk.hidden.new_zeros(len(trunk.alive))
    keep = run.stage.policy.select(scores, tokens) if select is None else select(run.stage, scores, tokens)
    keep = keep | trunk.of_alive(trunk.at_end)
    total = len(trunk.layout.item)
    all_scores = scores.new_full((total,), -torch.inf).index_copy(0, trunk.alive, scores)
    all_keep = keep.new_zeros(total).index_copy(0, trunk.alive, keep)
    reducer, reduced = run.stage.reducer, None
    if not isinstance(reducer, Drop):
        targets = run.stage.policy.merge_targets(scores, keep, tokens)
        reduced = reducer.reduce(tokens.hidden, keep, replace(tokens, scores=scores, targets=targets))
    behind = len(trunk.cache.layers) < len(trunk.decoder.layers)  # else no key will ever stand at another position
    first = len(trunk.cache.layers) if run.stage.early_kv == "keep" else 0
    trunk.compact(all_keep, reduced, first, run.stage.positions == "renumber" and behind)
    return all_scores, all_keep


def _scores(run: StageRun, tokens: VisualTokens, alike: int) -> Tensor:
    """Scores ``[V]`` of samples of which every ``alike`` in a row are the same."""
    if alike == 1:
        return run.scorer(tokens)
    first = tokens.subset(tokens.sample % alike == 0)
    sizes = segment_count(first.sample // alike, tokens.num_samples // alike)
    return run.scorer(first)[repeated_segments(sizes, alike)]
