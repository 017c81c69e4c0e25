"""Pruned prefill: how a decoder runs over a prompt while visual tokens leave it.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns left, ``V`` visual tokens, ``D`` width, ``H`` heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from glimpse_lightning.engine.compaction import Compaction, fork_cache
from glimpse_lightning.engine.streams import SideStream
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.scorers.base import AttentionProbe
from glimpse_lightning.visual_tokens import Views, VisualTokens

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone, Prompt
    from glimpse_lightning.pruner import Pruner, PruneStage


@dataclass(frozen=True)
class TokenLayout:
    """Where the ``V`` visual tokens of a batch belong: see the fields of the same name of ``VisualTokens``."""

    item: Tensor
    sample: Tensor
    position: Tensor
    grid: Tensor
    item_sample: Tensor
    views: Views | None = None

    @classmethod
    def of(cls, visual: Tensor, grid: Tensor, views: Views | None = None) -> TokenLayout:
        """From ``visual [B, N]`` and ``grid [I, 3]``."""
        sample = visual.nonzero()[:, 0]
        sizes = grid.prod(-1)
        ends = sizes.cumsum(0)
        item = torch.repeat_interleave(sizes, output_size=len(sample))
        offset = torch.arange(len(sample), device=grid.device) - (ends - sizes)[item]
        _, height, width = grid[item].unbind(-1)
        plane = height * width
        position = torch.stack([offset // plane, offset % plane // width, offset % width], -1)
        return cls(item, sample, position, grid, sample[ends - sizes], views)


@dataclass
class PrefillOutput:
    """A prompt after prefill; what decoding continues from.

    Attributes:
        scores: one per stage, ``[V]``, higher = keep; ``-inf`` for tokens an earlier stage dropped.
        keep: one per stage, ``[V]`` boolean over all visual tokens of the batch, sample by sample, item by item.
        prompt_keep: ``[B, N]`` true where a prompt position survived all stages, in the caller's layout; false at
            padding.
        logits: ``[B, vocab]`` at the last prompt position.
        position_ids: ``[..., B, M]`` original positions of the kept columns.
        attention_mask: ``[B, M]`` long, 0 at padding (on the left).
        cache: keys and values, ``M`` columns in every layer.
        tokens: where the visual tokens belong.
        prompt_ids, prompt_mask: ``[B, N]`` the unpruned prompt, padded on the left, for what looks at it while
            decoding (repetition penalties); ``None`` where only an embedded prompt is known.
    """

    scores: list[Tensor]
    keep: list[Tensor]
    prompt_keep: Tensor
    logits: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    cache: Cache
    tokens: TokenLayout
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None

    def fork(self, repeats: int = 1) -> PrefillOutput:
        """A copy that decoding may grow, each sample repeated ``repeats`` times; this one stays reusable."""
        batch_axis = self.position_ids.ndim - 2
        return replace(
            self,
            logits=self.logits.repeat_interleave(repeats, 0),
            position_ids=self.position_ids.repeat_interleave(repeats, batch_axis),
            attention_mask=self.attention_mask.repeat_interleave(repeats, 0),
            cache=fork_cache(self.cache, repeats),
        )


@dataclass
class Trunk:
    """The main stream: hidden states of the columns still there, and what is known of each column.

    Attributes:
        slot: ``[B, M]`` packed index of the visual token at a column; -1 elsewhere.
        column: ``[B, M]`` original column.
        alive: ``[V']`` packed indices of the visual tokens still there, ascending.
    """

    backbone: Backbone
    prompt: Prompt
    layout: TokenLayout
    hidden: Tensor
    mask: Tensor
    position_ids: Tensor
    slot: Tensor
    column: Tensor
    alive: Tensor
    cache: Cache
    masks: dict[str, Any] = field(default_factory=dict)
    positions: Any = None

    @classmethod
    def start(cls, backbone: Backbone, prompt: Prompt) -> Trunk:
        visual = prompt.visual
        slot = torch.where(visual, visual.flatten().cumsum(0).view_as(visual) - 1, -1)
        layout = TokenLayout.of(visual, prompt.grid, prompt.views)
        column = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
        alive = torch.arange(len(layout.item), device=visual.device)
        return cls(
            backbone, prompt, layout, prompt.embeds, prompt.mask, prompt.position_ids, slot, column, alive,
            cache=DynamicCache(),
        )  # fmt: skip

    def run_layer(self, layer: int, tap: AttentionTap | None = None) -> None:
        if self.positions is None:
            self.positions = self.backbone.position_embeddings(self.hidden, self.position_ids)
        kind = self.backbone.layer_type(layer)
        if kind not in self.masks:
            self.masks[kind] = self.backbone.attention_mask(layer, self.hidden, self.mask, None)
        self.hidden = self.backbone.run_layer(layer, self.hidden, self.masks[kind], self.positions, self.cache, tap)
        if layer in self.prompt.layer_features:
            visual = self.slot >= 0
            features = self.prompt.layer_features[layer][self.alive].to(self.hidden)
            self.hidden = self.hidden.masked_scatter(visual[..., None], self.hidden[visual] + features)

    def compact(self, keep: Tensor, reduced: Tensor | None) -> None:
        """Drop the visual tokens that ``keep [V]`` (over all of them) does not keep; ``reduced [kept, D]`` replaces
        the states of the kept ones.
        """
        kept_columns = self.mask & torch.cat([keep, keep.new_ones(1)])[self.slot]  # slot -1 = text: always kept
        plan = Compaction.plan(kept_columns)
        self.hidden = plan.rows(self.hidden)
        self.position_ids = plan.columns(self.position_ids, 1)
        self.slot = plan.columns(self.slot, -1)
        self.column = plan.columns(self.column)
        self.mask = plan.mask
        self.alive = self.alive[keep[self.alive]]
        plan.compact_cache(self.cache)
        self.masks, self.positions = {}, None
        if reduced is not None:
            self.hidden[self.slot >= 0] = reduced

    def visual(self, values: Tensor) -> Tensor:
        """Rows of ``values [B, M, ...]`` at the visual tokens still there, packed: ``[V', ...]``."""
        return values[self.slot >= 0]

    def prompt_keep(self) -> Tensor:
        """``[B, N]`` which columns of the caller's prompt are still there."""
        keep = torch.zeros_like(self.prompt.mask).scatter(1, self.column, self.mask)
        plan = self.prompt.left_padding
        if plan is None:
            return keep
        return torch.zeros_like(keep).scatter(1, plan.index, keep)


class StageRun:
    """What one stage needs while the layers before it run: its glimpse stream and its captured attention rows."""

    def __init__(self, stage: PruneStage, trunk: Trunk) -> None:
        self.stage = stage
        self.scorer = stage.scorer
        self.requires = stage.requires
        self.captured: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        queries = {probe.query for probe in self.requires.probes.values()}
        self.stream = self._glimpse_stream(trunk) if "glimpse" in queries else None
        self.raters = self._raters(trunk) if "text" in queries else None
        if stage.after_layer < 0 and (self.requires.probes or self.stream):
            raise GlimpseError(
                f"{type(self.scorer).__name__} reads attention of decoder layers, so it cannot score before layer 0; "
                "set the stage's `after_layer` to 0 or more."
            )

    def _glimpse_stream(self, trunk: Trunk) -> SideStream:
        glimpse = self.scorer.glimpse
        assert glimpse is not None
        batch, device = trunk.hidden.shape[0], trunk.hidden.device
        steps = torch.arange(1, glimpse.length + 1, device=device)
        rows = trunk.hidden.new_zeros(batch, glimpse.length, trunk.hidden.shape[-1])
        rows_mask = torch.ones(batch, glimpse.length, dtype=torch.bool, device=device)
        return SideStream(trunk.backbone, rows, rows_mask, trunk.mask, trunk.position_ids[..., -1:] + steps)

    def _raters(self, trunk: Trunk) -> Tensor:
        """``[B, N]`` the text tokens whose attention the scorer reads; chosen before layer 0."""
        layout = trunk.layout
        behind = trunk.prompt.visual.cumsum(1) > 0  # text in front of the first image cannot see any
        text = trunk.mask & ~trunk.prompt.visual & behind
        tokens = VisualTokens(
            embeds=trunk.visual(trunk.hidden), hidden=trunk.visual(trunk.hidden), item=layout.item,
            sample=layout.sample, grid=layout.grid, item_sample=layout.item_sample, position=layout.position,
            key=layout.item.new_zeros(len(text)), facts=trunk.backbone.facts, text=trunk.hidden[text],
            text_sample=text.nonzero()[:, 0],
        )  # fmt: skip
        return text.masked_scatter(text, self.scorer.raters(tokens))

    def probes(self, layer: int, query: str) -> list[tuple[str, AttentionProbe]]:
        return [(n, p) for n, p in self.requires.probes.items() if p.query == query and layer in p.layers]

    def after_main_layer(self, layer: int, trunk: Trunk, main: AttentionTap, key_bias: Tensor | None = None) -> None:
        """Take the attention rows of ``layer`` that ``main`` captured and advance the glimpse stream through it."""
        for name, probe in self.probes(layer, "last"):
            assert main.logits is not None
            self._capture(name, probe, layer, trunk, main.logits, trunk.mask)
        for name, _ in self.probes(layer, "text"):
            self._capture_text(name, layer, trunk, main)
        if self.stream is None or self.scorer.glimpse is None:
            return
        vectors = self.scorer.glimpse(layer)
        if vectors is not None:
            length = self.scorer.glimpse.length
            self.stream.hidden = torch.cat(
                [self.stream.hidden[:, :length] + vectors.to(self.stream.hidden.dtype), self.stream.hidden[:, length:]],
                dim=1,
            )
        wanted = self.probes(layer, "glimpse")
        tap = AttentionTap(row=self.scorer.glimpse.length - 1 if wanted else None, key_bias=key_bias)
        self.stream.run_layer(layer, trunk.cache, tap)
        for name, probe in wanted:
            assert tap.logits is not None
            seen = self.stream.mask.clone()
            seen[:, trunk.mask.shape[1] + self.scorer.glimpse.length :] = False  # rows behind the glimpse
            self._capture(name, probe, layer, trunk, tap.logits, seen)

    def _capture(
        self, name: str, probe: AttentionProbe, layer: int, trunk: Trunk, row_BHn: Tensor, seen_Bn: Tensor
    ) -> None:
        if probe.scale == "log_softmax":
            row_BHn = row_BHn.float().masked_fill(~seen_Bn[:, None], -torch.inf).log_softmax(-1)
        prompt_row = row_BHn[..., : trunk.mask.shape[1]].transpose(1, 2)
        self.captured[name, layer] = (trunk.alive, trunk.visual(prompt_row))

    def _capture_text(self, name: str, layer: int, trunk: Trunk, main: AttentionTap) -> None:
        """Log of the attention weights of the raters' rows, averaged over raters."""
        assert main.rows is not None and main.rows_logits is not None and self.raters is not None
        column = torch.arange(trunk.mask.shape[1], device=trunk.mask.device)
        seen_BRn = trunk.mask[:, None] & (column <= main.rows[..., None])
        weights_BHRn = main.rows_logits.float().masked_fill(~seen_BRn[:, None], -torch.inf).softmax(-1)
        mine = (self.raters.gather(1, trunk.column) & trunk.mask).gather(1, main.rows).float()
        share = mine / mine.sum(1, keepdim=True).clamp(min=1)
        mean_BHn = (weights_BHRn.nan_to_num() * share[:, None, :, None]).sum(2)
        row = mean_BHn.clamp(min=torch.finfo(torch.float32).tiny).log()
        self.captured[name, layer] = (trunk.alive, trunk.visual(row.transpose(1, 2)))

    def tokens(
        self, trunk: Trunk, key: Tensor, questions: Sequence[str], state: dict[str, Any], boxes: Sequence[Any] = ()
    ) -> VisualTokens:
        """The visual tokens still there, as the scorer sees them."""
        alive, layout, prompt = trunk.alive, trunk.layout, trunk.prompt
        text = trunk.mask & (trunk.slot < 0) if self.requires.text else None
        keys = self._decoder_keys(trunk) if self.requires.keys else None
        return VisualTokens(
            embeds=prompt.embeds[prompt.visual][alive],
            hidden=trunk.visual(trunk.hidden),
            item=layout.item[alive],
            sample=layout.sample[alive],
            position=layout.position[alive],
            grid=layout.grid,
            item_sample=layout.item_sample,
            probes={name: self._probe(name, probe, alive) for name, probe in self.requires.probes.items()},
            vision={layer: prompt.vision[layer][alive] for layer in self.requires.vision_layers},
            text=None if text is None else trunk.hidden[text],
            text_sample=None if text is None else text.nonzero()[:, 0],
            questions=tuple(questions),
            boxes=tuple(boxes),
            key=key,
            facts=trunk.backbone.facts,
            state=state,
            keys=None if keys is None else trunk.visual(keys),
            text_keys=None if keys is None or text is None else keys[text],
            views=layout.views,
        )

    def _decoder_keys(self, trunk: Trunk) -> Tensor:
        """``[B, M, Hk * d]`` keys of the last layer that has run."""
        if not trunk.cache.layers:
            raise GlimpseError(
                f"{type(self.stage.policy).__name__} reads decoder keys, and none exist before layer 0; set the "
                "stage's `after_layer` to 0 or more."
            )
        return trunk.cache.layers[-1].keys.transpose(1, 2).flatten(2)

    def _probe(self, name: str, probe: AttentionProbe, alive: Tensor) -> Tensor:
        rows = []
        for layer in probe.layers:
            if (name, layer) not in self.captured:
                raise GlimpseError(
                    f"{type(self.scorer).__name__} wants the attention of layer {layer}, but its stage prunes after "
                    f"layer {self.stage.after_layer}; ask for layers up to that one."
                )
            seen, values = self.captured[name, layer]
            rows.append(values if seen is alive else values[torch.searchsorted(seen, alive)])
        return torch.cat(rows, -1)


def new_stage_runs(pruner: Pruner | None, trunk: Trunk) -> list[StageRun]:
    """One run per stage; none where there is no visual token to prune."""
    if pruner is None or len(trunk.alive) == 0:
        return []
    return [StageRun(stage, trunk) for stage in pruner.stages]


def run_layer_with_stages(
    layer: int, trunk: Trunk, runs: Sequence[StageRun], key_bias: Tensor | None = None, frozen: bool = False
) -> None:
    """One decoder layer of the main stream, and of the glimpse streams of the stages still ahead.

    Args:
        key_bias: ``[B, M]`` log of soft gates on the prompt's columns.
        frozen: the main stream needs no gradient; the glimpse streams keep theirs.
    """
    probed = any(run.probes(layer, "last") for run in runs)
    rows = _text_rows(trunk, [run.raters for run in runs if run.raters is not None and run.probes(layer, "text")])
    tap = AttentionTap(row=trunk.hidden.shape[1] - 1 if probed else None, key_bias=key_bias, rows=rows)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        trunk.run_layer(layer, tap if probed or rows is not None or key_bias is not None else None)
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
    backbone: Backbone,
    pruner: Pruner | None,
    prompt: Prompt,
    key: Tensor,
    questions: Sequence[str],
    boxes: Sequence[Any] = (),
    state: dict[str, Any] | None = None,
) -> PrefillOutput:
    """Run the prompt through the decoder; each stage drops its tokens from hidden states and all caches so far.

    Args:
        state: what the first stage finds in ``VisualTokens.state``.
    """
    trunk = Trunk.start(backbone, prompt)
    waiting = new_stage_runs(pruner, trunk)
    scores, keep, state = [], [], dict(state or {})
    num_layers = len(backbone.layers)
    for layer in range(-1, num_layers):
        if layer >= 0:
            run_layer_with_stages(layer, trunk, waiting)
        while waiting and (waiting[0].stage.after_layer == layer or layer == num_layers - 1):
            run = waiting.pop(0)
            stage_scores, stage_keep = _prune(run, trunk, run.tokens(trunk, key, questions, state, boxes))
            scores.append(stage_scores)
            keep.append(stage_keep)
            for later in waiting:
                if later.stream is not None:
                    later.stream.set_prompt(trunk.mask)
    missing = 0 if pruner is None else len(pruner.stages) - len(keep)
    total = len(trunk.layout.item)
    return PrefillOutput(
        scores=scores + [trunk.hidden.new_zeros(total)] * missing,
        keep=keep + [trunk.mask.new_ones(total)] * missing,
        prompt_keep=trunk.prompt_keep(),
        logits=backbone.logits(trunk.hidden[:, -1]),
        position_ids=trunk.position_ids,
        attention_mask=trunk.mask.long(),
        cache=trunk.cache,
        tokens=trunk.layout,
    )


def _prune(run: StageRun, trunk: Trunk, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    scores = run.scorer(tokens)
    keep = run.stage.policy.select(scores, tokens)
    total = len(trunk.layout.item)
    all_scores = scores.new_full((total,), -torch.inf).index_copy(0, trunk.alive, scores)
    all_keep = keep.new_zeros(total).index_copy(0, trunk.alive, keep)
    reducer, reduced = run.stage.reducer, None
    if not isinstance(reducer, Drop):
        targets = run.stage.policy.merge_targets(scores, keep, tokens)
        reduced = reducer.reduce(tokens.hidden, keep, replace(tokens, scores=scores, targets=targets))
    trunk.compact(all_keep, reduced)
    return all_scores, all_keep
