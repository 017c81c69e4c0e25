"""The decoder layers in turn, halting where a stage prunes: one loop for prefill and training.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glimpse_lightning.engine.glimpse_run import GlimpseRun
from glimpse_lightning.engine.stage_run import StageRun, last_columns
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk

if TYPE_CHECKING:
    from glimpse_lightning.pruner.pruner import Pruner


def new_stage_runs(pruner: Pruner | None, trunk: Trunk, scored: bool = True, trained: bool = True) -> list[StageRun]:
    """One run per stage, also where there is no visual token to prune: in training, all ranks must reduce the same
    tensors.

    Args:
        scored: whether the stages' scorers run; they do by default.
        trained: whether a gradient is wanted, as by default. Without one, the first glimpse tokens ride in the trunk.
    """
    if pruner is None:
        return []
    runs: list[StageRun] = []
    glimpse: GlimpseRun | None = None
    for stage in pruner.stages:
        runs.append(StageRun(stage, trunk, glimpse, scored, rides=not trained and glimpse is None))
        glimpse = runs[-1].glimpse or glimpse
    return runs


def stages_in_turn(waiting: list[StageRun], num_layers: int, run_layer: Callable[[int], None]) -> Iterator[StageRun]:
    """Run all layers, and yield each stage after its ``after_layer``; the last layer is the latest place for any.

    Args:
        waiting: stages that have not pruned yet; each leaves the list as it is yielded.
        run_layer: function that runs the layer of a given number, for the streams that read it.
    """
    for layer in range(-1, num_layers):
        if layer >= 0:
            run_layer(layer)
        while waiting and (waiting[0].stage.after_layer == layer or layer == num_layers - 1):
            yield waiting.pop(0)


def run_layer_with_stages(
    layer: int, trunk: Trunk, runs: Sequence[StageRun], key_bias: Tensor | None = None, frozen: bool = False
) -> None:
    """One decoder layer of the main stream, and of the glimpse streams of the stages that have not pruned yet.

    Args:
        key_bias: ``[B, M]`` log of soft gates on the prompt's columns.
        frozen: whether the main stream needs no gradient; the glimpse streams keep theirs.
    """
    if not runs and key_bias is None:  # no attention row to capture
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
    return last_columns(wanted, most)
