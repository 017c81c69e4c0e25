"""A prune stage while the decoder layers before it run: its glimpse tokens and captured attention rows.

Suffixes: ``B`` samples, ``M`` columns that remain, ``n`` keys of a row, ``R`` rows, ``H`` heads, ``V`` visual tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.engine.glimpse_run import GlimpseRun
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.streams import SideStream
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.engine.windows import column_numbers
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import UNSEEN, AttentionProbe, Requires

if TYPE_CHECKING:
    from glimpse_lightning.pruner.stage import PruneStage


class StageRun:
    """One stage while the layers before it run: its glimpse tokens and its captured attention rows.

    Args:
        stage: the stage itself.
        trunk: the main stream before layer 0.
        glimpse: glimpse tokens of the stages before, for a scorer that shares them.
        scored: whether the scorer runs. False where the choice is known already: the scorer's inputs are then not
            computed.
        rides: whether glimpse tokens of the stage's own run as the trunk's tail.
    """

    def __init__(
        self,
        stage: PruneStage,
        trunk: Trunk,
        glimpse: GlimpseRun | None = None,
        scored: bool = True,
        rides: bool = False,
    ) -> None:
        self.stage = stage
        self.scorer = stage.scorer
        self.scored = scored
        self.requires = stage.requires if scored else Requires()
        self.captured: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        queries = {probe.query for probe in self.requires.probes.values()}
        if stage.after_layer < 0 and self.requires.probes:
            raise GlimpseError(
                f"{type(self.scorer).__name__} reads attention of decoder layers, so it cannot score before layer 0; "
                "set the stage's `after_layer` to 0 or more."
            )
        self.glimpse = self._glimpse(trunk, glimpse, rides) if "glimpse" in queries else None
        self.raters = self._raters(trunk) if "text" in queries else None
        self.text_states: dict[int, tuple[Tensor, Tensor]] = {}
        self._texts = int(_is_text(trunk).sum(1).max()) if self.requires.text_layers else 0
        self._capture_text_states(-1, trunk)

    @property
    def stream(self) -> SideStream | None:
        """The side stream of glimpse tokens that do not ride."""
        return None if self.glimpse is None else self.glimpse.stream

    @property
    def rider(self) -> GlimpseRun | None:
        """The glimpse tokens, where they ride."""
        return None if self.stream is not None else self.glimpse

    def _glimpse(self, trunk: Trunk, before: GlimpseRun | None, rides: bool) -> GlimpseRun:
        if self.scorer.shares_glimpse:
            assert before is not None  # as `Pruner.build` checks
            run = before
        else:
            assert self.scorer.glimpse is not None
            run = GlimpseRun(self.scorer.glimpse, trunk, rides)
        run.wanted |= {n for probe in self.requires.probes.values() if probe.query == "glimpse" for n in probe.layers}
        return run

    def _raters(self, trunk: Trunk) -> Tensor:
        """``[B, N]`` the text tokens whose attention the scorer reads; chosen before layer 0."""
        layout = trunk.layout
        after_image = trunk.prompt.visual.cumsum(1) > 0  # text before the first image cannot see any
        text = trunk.mask & ~trunk.prompt.visual & after_image
        tokens = VisualTokens(
            embeds=trunk.visual(trunk.hidden), hidden=trunk.visual(trunk.hidden), item=layout.item,
            sample=layout.sample, grid=layout.grid, item_sample=layout.item_sample, position=layout.position,
            key=layout.item.new_zeros(len(text)), facts=trunk.decoder.facts, text=trunk.hidden[text],
            text_sample=text.nonzero()[:, 0],
        )  # fmt: skip
        return text.masked_scatter(text, self.scorer.raters(tokens))

    def probes(self, layer: int, query: str) -> list[tuple[str, AttentionProbe]]:
        return [(n, p) for n, p in self.requires.probes.items() if p.query == query and layer in p.layers]

    def after_main_layer(self, layer: int, trunk: Trunk, main: AttentionTap, key_bias: Tensor | None = None) -> None:
        """Take the attention rows of ``layer`` that ``main`` captured and advance the glimpse stream through it."""
        for name, probe in self.probes(layer, "last"):
            assert main.logits is not None
            own = main.logits[:, :, 0, : trunk.mask.shape[1]]
            self.capture(name, probe, layer, trunk, own, trunk.mask, key_bias, trunk.counted)
        for name, probe in self.probes(layer, "text"):
            self._capture_text(name, probe, layer, trunk, main, key_bias)
        self._capture_text_states(layer, trunk)
        if self.glimpse is None:
            return
        row = self.glimpse.advance(layer, trunk, key_bias)
        for name, probe in self.probes(layer, "glimpse"):
            assert row is not None
            counted = None if self.stream is None else self.stream.counted
            self.capture(name, probe, layer, trunk, row, self.glimpse.visible(trunk), key_bias, counted)

    def capture(
        self,
        name: str,
        probe: AttentionProbe,
        layer: int,
        trunk: Trunk,
        row_BHn: Tensor,
        visible_Bn: Tensor,
        key_bias: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Keep the logits of one query row, at the visual tokens, for the probe ``name``.

        Args:
            visible_Bn: keys that the row may attend to, itself the last of them; a window narrows them.
            key_bias: ``[B, M]`` log of soft gates on the prompt's columns, the first of the keys.
            counted: ``[B, n]`` keys that the window counts; ``None`` = all.
        """
        if probe.scale == "log_softmax":
            window = trunk.decoder.window(layer)
            if window is not None:
                column = torch.arange(visible_Bn.shape[1], device=visible_Bn.device)
                number = column.expand_as(visible_Bn) if counted is None else column_numbers(counted)
                last = (column * visible_Bn).argmax(1, keepdim=True)
                visible_Bn = visible_Bn & (number > number.gather(1, last) - window)
            row_BHn = log_weights(row_BHn.float(), visible_Bn[:, None], key_bias).clamp(min=UNSEEN)
        prompt_row = row_BHn[..., : trunk.mask.shape[1]].transpose(1, 2)
        self.captured[name, layer] = (trunk.alive, trunk.visual(prompt_row))

    def _capture_text(
        self, name: str, probe: AttentionProbe, layer: int, trunk: Trunk, main: AttentionTap, key_bias: Tensor | None
    ) -> None:
        """Log of the attention weights of the raters' rows, averaged over raters; or their information."""
        assert main.rows is not None and main.rows_logits is not None and self.raters is not None
        column = torch.arange(trunk.mask.shape[1], device=trunk.mask.device)
        visible_BRn = trunk.mask[:, None] & (column <= main.rows[..., None])
        window = trunk.decoder.window(layer)
        if window is not None:
            number = column.expand_as(trunk.mask) if trunk.counted is None else column_numbers(trunk.counted)
            visible_BRn = visible_BRn & (number[:, None] > number.gather(1, main.rows)[..., None] - window)
        visible_BRn = visible_BRn | ~visible_BRn.any(
            -1, keepdim=True
        )  # padding rows are never read; NaN would spread from them
        logits_BHRn = main.rows_logits[..., : len(column)].float()
        weights_BHRn = log_weights(logits_BHRn, visible_BRn[:, None], key_bias).exp()
        mine_BR = (self.raters.gather(1, trunk.column) & trunk.mask).gather(1, main.rows)
        if probe.scale == "information":
            asked = (mine_BR[:, None, :, None] & (trunk.slot >= 0)[:, None, None]).float()
            if key_bias is not None:
                asked = asked * key_bias.float().exp()[:, None, None]
            each = _mutual_information(weights_BHRn * asked) / mine_BR.sum(1, keepdim=True).clamp(min=1)
            row = each[..., None].expand(-1, -1, len(column))
        else:
            share = mine_BR.float() / mine_BR.sum(1, keepdim=True).clamp(min=1)
            mean_BHn = (weights_BHRn * share[:, None, :, None]).sum(2)
            row = mean_BHn.clamp(min=torch.finfo(torch.float32).tiny).log()
        self.captured[name, layer] = (trunk.alive, trunk.visual(row.transpose(1, 2)))

    def _capture_text_states(self, layer: int, trunk: Trunk) -> None:
        """Keep ``[B, R, D]`` states of the text tokens after ``layer``, and ``[B, R]`` which rows hold one."""
        if layer not in self.requires.text_layers:
            return
        text = _is_text(trunk)
        rows = last_columns(text, self._texts)
        states = trunk.hidden.gather(1, rows[..., None].expand(-1, -1, trunk.hidden.shape[-1]))
        self.text_states[layer] = states, text.gather(1, rows)

    def tokens(self, trunk: Trunk, request: PrefillRequest, state: dict[str, Any]) -> VisualTokens:
        """The visual tokens still there, as the scorer sees them.

        Args:
            state: entries that the stages pass on; the scorer may add to it.
        """
        layout, prompt = trunk.layout, trunk.prompt
        sample = trunk.of_alive(layout.sample)
        is_text = _is_text(trunk)
        text = is_text if self.requires.text else None
        keys = self._decoder_keys(trunk) if self.requires.keys else None
        return VisualTokens(
            embeds=prompt.embeds[sample, trunk.of_alive(layout.column)],
            hidden=trunk.visual(trunk.hidden),
            item=trunk.of_alive(layout.item),
            sample=sample,
            position=trunk.of_alive(layout.position),
            grid=layout.grid,
            item_sample=layout.item_sample,
            probes={name: self._probe(name, probe, trunk.alive) for name, probe in self.requires.probes.items()},
            vision={layer: trunk.of_alive(prompt.vision[layer]) for layer in self.requires.vision_layers},
            text=None if text is None else trunk.hidden[text],
            text_sample=is_text.nonzero()[:, 0] if self.requires.text or self.requires.text_layers else None,
            text_states={layer: self._text_states(layer) for layer in self.requires.text_layers},
            questions=tuple(request.questions),
            boxes=tuple(request.boxes),
            key=request.key,
            facts=trunk.decoder.facts,
            state=state,
            keys=None if keys is None else trunk.visual(keys),
            text_keys=None if keys is None or text is None else keys[text],
            views=layout.views,
            text_length=is_text.sum(1),
            layer_tokens=trunk.layer_lengths(),
        )

    def _text_states(self, layer: int) -> Tensor:
        """``[T, D]``; text tokens are never dropped, so that they are the same after every layer."""
        if layer not in self.text_states:
            raise self._not_run("states", layer)
        states, real = self.text_states[layer]
        return states[real]

    def _decoder_keys(self, trunk: Trunk) -> Tensor:
        """``[B, M, Hk * d]`` keys of the last layer that has run."""
        if not trunk.cache.layers:
            raise GlimpseError(
                f"{type(self.stage.policy).__name__} reads decoder keys, and none exist before layer 0; set the "
                "stage's `after_layer` to 0 or more."
            )
        return trunk.last_keys()

    def _probe(self, name: str, probe: AttentionProbe, alive: Tensor) -> Tensor:
        rows = []
        for layer in probe.layers:
            if (name, layer) not in self.captured:
                raise self._not_run("attention", layer)
            alive_then, values = self.captured[name, layer]
            rows.append(values if alive_then is alive else values[torch.searchsorted(alive_then, alive)])
        return torch.cat(rows, -1)

    def _not_run(self, what: str, layer: int) -> GlimpseError:
        return GlimpseError(
            f"{type(self.scorer).__name__} wants the {what} of layer {layer}, but its stage prunes after layer "
            f"{self.stage.after_layer}; ask for layers up to that one."
        )


def last_columns(wanted: Tensor, count: int) -> Tensor:
    """``[B, count]`` ascending columns of each row's ``wanted [B, M]``, at most ``count``; in rows with fewer, some
    that are not wanted come before them.
    """
    return wanted.to(torch.uint8).argsort(dim=1, stable=True)[:, wanted.shape[1] - count :]


def _is_text(trunk: Trunk) -> Tensor:
    """``[B, M]`` the prompt's tokens that are not visual, without padding."""
    return trunk.mask & (trunk.slot < 0)


def log_weights(logits: Tensor, visible: Tensor, key_bias_Bn: Tensor | None) -> Tensor:
    """Log of the attention weights of rows ``[B, H, ..., n]`` that see the ``visible`` keys; ``-inf`` of others.

    With soft gates, of which ``key_bias_Bn`` are the logs on the first keys, each key's weight is computed as if its
    own gate were open, while the other keys count in proportion to their gates. An open key thus has its weight in a
    prefill. A closed key has the weight that a stage would read if the key had been kept.
    """
    logits = logits.masked_fill(~visible, -torch.inf)
    if key_bias_Bn is None:
        return logits.log_softmax(-1)
    bias = F.pad(key_bias_Bn.float(), (0, logits.shape[-1] - key_bias_Bn.shape[-1]))
    bias = bias.view(len(bias), *[1] * (logits.ndim - 2), -1)
    withheld = (-bias.clamp(max=-torch.finfo(bias.dtype).eps).expm1()).log()  # log(1 - gate), finite of an open one
    total = (logits + bias).logsumexp(-1, keepdim=True)
    return logits - torch.logaddexp(total, logits + withheld)


def _mutual_information(weights_BHRn: Tensor) -> Tensor:
    """``[B, H]`` mutual information in nats of row and column, their joint distribution being the weights over their
    sum; 0 where there are none.
    """
    joint = weights_BHRn / weights_BHRn.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def negative_entropy(p: Tensor) -> Tensor:
        return torch.special.xlogy(p, p).flatten(2).sum(-1)

    apart = negative_entropy(joint.sum(-1)) + negative_entropy(joint.sum(-2))
    return (negative_entropy(joint) - apart).clamp(min=0)
