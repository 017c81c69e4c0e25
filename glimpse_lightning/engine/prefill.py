"""Pruned prefill: how a decoder runs over a prompt while visual tokens leave it.

From prompt to ``PrefillOutput``, in this order:

1. ``PrunedVLM.prefill`` refuses unknown keywords and moves the processor's tensors to the model's device.
2. ``Backbone.embed`` embeds text and images, unless the caller did, and pads the prompts on the left.
3. ``run_prefill`` takes both as one ``PrefillRequest``, and each sample as often as copies are asked for
   (``PrefillRequest.repeated``).
4. ``Trunk.start`` makes the main stream: hidden states, columns, the place of each visual token, an empty cache.
5. ``new_stage_runs`` prepares the stages: the attention rows that their scorers read, and their glimpse tokens.
6. ``stages_in_turn`` runs the layers one by one. In each, ``run_layer_with_stages`` advances the main stream by
   ``Trunk.run_layer``, and ``StageRun.after_main_layer`` keeps the attention rows that a later stage scores by.
7. After a stage's layer, ``StageRun.tokens`` packs the remaining visual tokens, without padding, for the stage's parts.
8. ``prune`` asks these: ``_scores`` has the scorer score them, ``_keep`` has the policy choose by the scores, and
   ``_reduced`` has the reducer merge dropped tokens into kept ones.
9. ``Trunk.compact`` removes the dropped columns from states and caches. The next layer runs on fewer columns.
10. After the last layer, ``_output`` collects the result; ``Decoder.logits`` predicts the next token.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns that remain, ``V`` visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from glimpse_lightning.core.segments import repeated_segments, segment_count, segment_sum
from glimpse_lightning.core.token_places import frame_retention
from glimpse_lightning.core.visual_tokens import Views, VisualTokens
from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.overlay import overlay
from glimpse_lightning.engine.prompt import TokenLayout
from glimpse_lightning.engine.prompt_cache import PromptCache, fork_cache
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.stage_loop import new_stage_runs, run_layer_with_stages, stages_in_turn
from glimpse_lightning.engine.stage_run import StageRun
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.reducers.drop import Drop

if TYPE_CHECKING:
    from glimpse_lightning.pruner.pruner import Pruner


SHOWN = 8
"""Prompts whose kept shares the representation shows."""


@dataclass(repr=False)
class PrefillOutput:
    """A prompt after prefill, from which decoding continues.

    Attributes:
        scores: one per stage, ``[V]``, higher = keep; ``-inf`` for tokens an earlier stage dropped.
        keep: one per stage, ``[V]`` boolean over all visual tokens of the batch, sample by sample, item by item. A
            token at the very end of a prompt is always kept, even where the policy drops it: decoding goes on from
            there.
        prompt_keep: ``[B, N]`` true where a prompt position survived all stages, in the caller's layout; false at
            padding.
        logits: ``[B, vocab]`` at the last prompt position.
        position_ids: ``[..., B, M]`` positions of the kept columns in the last layer: the original ones, unless a
            stage renumbered them.
        attention_mask: ``[B, M]`` long, 0 at padding (on the left).
        cache: keys and values: ``M`` columns in every layer, or more in early ones whose cache a stage left unchanged.
        tokens: the sample, item and position of each visual token.
        hidden: ``[B, M, D]`` after the last layer, before the final norm; ``None`` unless asked for.
        column: ``[B, M]`` each column's place in the left-padded prompt; ``None`` unless asked for.
        prompt_ids, prompt_mask: ``[B, N]`` the unpruned prompt, padded on the left, for logits processors such as
            repetition penalties; ``None`` where only an embedded prompt is known.
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

    def kept(self, stages: int | None = None) -> Tensor:
        """``[V]`` which visual tokens survived the first ``stages``, or all of them."""
        keep = torch.ones_like(self.tokens.item, dtype=torch.bool)
        for kept in self.keep[:stages]:
            keep = keep & kept
        return keep

    @property
    def retention(self) -> Tensor:
        """``[B]`` share of each prompt's visual tokens that survived all stages; NaN without any."""
        kept, samples = self.kept().float(), len(self.attention_mask)
        total = segment_sum(torch.ones_like(kept), self.tokens.sample, samples)
        return segment_sum(kept, self.tokens.sample, samples) / total

    def items(self, stages: int | None = None) -> list[dict[str, Any]]:
        """For each item (image, tile of one, frame) its ``sample``, the number of its ``image`` in the sample, the
        ``region`` (x1, y1, x2, y2) of the image that it shows, its ``grid`` (t, h, w) and the mask of ``kept`` tokens
        ``[t * h * w]`` after the first ``stages``, or all of them. The region is NaN where it is not known.
        """
        tokens, keep = self.tokens, self.kept(stages).cpu()
        views = tokens.views or Views.whole(len(tokens.grid), tokens.grid.device)
        samples = tokens.item_sample.tolist()
        images, regions = views.within(samples), views.region.tolist()
        return [
            {
                "sample": samples[item],
                "image": images[item],
                "region": tuple(regions[item]),
                "grid": tuple(grid.tolist()),
                "kept": keep[(tokens.item == item).cpu()],
            }
            for item, grid in enumerate(tokens.grid)
        ]

    def show(self, image: Image, sample: int = 0, number: int = 0, stages: int | None = None) -> Image:
        """A picture of what was kept of one of a prompt's images; see :func:`~.engine.overlay.overlay`.

        Args:
            image: the image, as it was given to the processor.
            sample: number of the prompt in its batch.
            number: number of the image in its prompt.
            stages: number of stages after which it is shown; ``None``: all of them.
        """
        return overlay(image, self, sample, number, stages=stages)

    def __repr__(self) -> str:
        shares = ", ".join("-" if share != share else f"{share:.1%}" for share in self.retention.tolist()[:SHOWN])
        more = ", ..." if len(self.attention_mask) > SHOWN else ""
        return (
            f"PrefillOutput({len(self.attention_mask)} prompts, {len(self.tokens.item)} visual tokens, "
            f"{len(self.keep)} stages, kept {shares}{more})"
        )

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


def run_prefill(decoder: Decoder, pruner: Pruner | None, request: PrefillRequest) -> PrefillOutput:
    """Run the prompt through the decoder; each stage drops its tokens from hidden states and all caches so far."""
    request = request.repeated()
    trunk = Trunk.start(decoder, request.prompt, request.shared_prefix)
    waiting = new_stage_runs(pruner, trunk, request.scored, torch.is_grad_enabled())
    run_layer = partial(run_layer_with_stages, trunk=trunk, runs=waiting)
    state = dict(request.state)
    scores: list[Tensor] = []
    keep: list[Tensor] = []
    for run in stages_in_turn(waiting, len(decoder.layers), run_layer):
        tokens = run.tokens(trunk, request, state)
        if trunk.tail and not any(later.rider for later in waiting):
            trunk.drop_tail()
        alike = 1 if scores else request.copies  # until the first stage has pruned
        stage_scores, stage_keep = prune(run, trunk, tokens, request, alike)
        scores.append(stage_scores)
        keep.append(stage_keep)
        for later in waiting:
            if later.stream is not None:
                later.stream.set_prompt(trunk.columns)
    return _output(trunk, scores, keep, request.with_hidden)


def prune(
    run: StageRun, trunk: Trunk, tokens: VisualTokens, request: PrefillRequest, alike: int = 1
) -> tuple[Tensor, Tensor]:
    """Scores and keep mask of a stage, both ``[V]`` over all tokens; the dropped ones leave ``trunk``.

    Args:
        alike: number of equal samples in a row, of which one is scored.
    """
    scores = _scores(run, tokens, alike) if run.scored else trunk.hidden.new_zeros(len(trunk.alive))
    keep = _keep(run, trunk, scores, tokens, request)
    total = len(trunk.layout.item)
    all_scores = scores.new_full((total,), -torch.inf).index_copy(0, trunk.alive, scores)
    all_keep = keep.new_zeros(total).index_copy(0, trunk.alive, keep)
    reduced = _reduced(run, scores, keep, tokens, request)
    more_layers = len(trunk.cache.layers) < len(trunk.decoder.layers)  # else no key will stand at another position
    first = len(trunk.cache.layers) if run.stage.early_kv == "keep" else 0
    trunk.compact(all_keep, reduced, first, run.stage.positions == "renumber" and more_layers)
    return all_scores, all_keep


def _scores(run: StageRun, tokens: VisualTokens, alike: int) -> Tensor:
    """Scores ``[V']`` of samples that come in runs of ``alike`` equal ones."""
    if alike == 1:
        return run.scorer(tokens)
    first = tokens.subset(tokens.sample % alike == 0)
    sizes = segment_count(first.sample // alike, tokens.num_samples // alike)
    return run.scorer(first)[repeated_segments(sizes, alike)]


def _keep(run: StageRun, trunk: Trunk, scores: Tensor, tokens: VisualTokens, request: PrefillRequest) -> Tensor:
    """``[V']`` the choice of the policy, or of the request's ``select``, and any token at the end of a prompt."""
    if request.select is None:
        keep = request.policy_of(run.stage).select(scores, tokens)
    else:
        keep = request.select(run.stage, scores, tokens)
    return keep | trunk.of_alive(trunk.at_end)


def _reduced(
    run: StageRun, scores: Tensor, keep: Tensor, tokens: VisualTokens, request: PrefillRequest
) -> Tensor | None:
    """``[kept, D]`` new states of the kept tokens; ``None`` where they stay as they are."""
    stage = run.stage
    if isinstance(stage.reducer, Drop):
        return None
    targets = request.policy_of(stage).merge_targets(scores, keep, tokens)
    return stage.reducer.reduce(tokens.hidden, keep, replace(tokens, scores=scores, targets=targets))


def _output(trunk: Trunk, scores: list[Tensor], keep: list[Tensor], with_hidden: bool) -> PrefillOutput:
    return PrefillOutput(
        scores=scores,
        keep=keep,
        prompt_keep=trunk.prompt_keep(),
        logits=trunk.decoder.logits(trunk.hidden[:, -1]),
        position_ids=trunk.position_ids,
        attention_mask=trunk.mask.long(),
        cache=trunk.cache,
        tokens=trunk.layout,
        hidden=trunk.hidden if with_hidden else None,
        column=trunk.column if with_hidden else None,
    )
