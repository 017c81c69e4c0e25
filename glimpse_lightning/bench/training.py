"""Training steps, the package's own and the straightforward ones, on the same weights and batch, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.bench import figures
from glimpse_lightning.bench.inputs import make_inputs
from glimpse_lightning.bench.settings import Settings
from glimpse_lightning.bench.straightforward import StraightforwardVLM
from glimpse_lightning.bench.sweep import Say, group_of
from glimpse_lightning.bench.training_theory import KL as DISTIL
from glimpse_lightning.bench.training_theory import MASK, MASK_ANSWERS, StepCase
from glimpse_lightning.bench.variants import scorer_of
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine.prompt import TokenLayout
from glimpse_lightning.latency.clock import Clock
from glimpse_lightning.latency.flops import count_step
from glimpse_lightning.latency.memory import peak_bytes
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import KL, Mask
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.policies import Threshold
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage

OURS, PLAIN = WAYS = "ours", "straightforward"


def objective_of(step: str) -> Objective:
    """The objective of a kind of step, as at the end of a training, with no gate closed, which costs most.

    At a temperature this high no noise can close a gate. A batch with one closed gate needs masks, and more time.
    """
    objective = {MASK: Mask(answer_weight=0.0), MASK_ANSWERS: Mask(), DISTIL: KL(temperature=4.0)}[step]
    objective.progress = 1.0
    return objective


def training_batch(backbone: Backbone, inputs: Mapping[str, Any], answer_tokens: int) -> Batch:
    """A batch of ``inputs`` with random answers, and an evidence box in the upper left quarter of every image."""
    with torch.no_grad():
        prompt = backbone.embed(inputs)
    items = torch.bincount(TokenLayout.of(prompt.visual, prompt.grid).item_sample).tolist()
    size, device = len(inputs["input_ids"]), inputs["input_ids"].device
    ids = torch.randint(9, backbone.text_config.vocab_size, (size, answer_tokens), generator=torch.manual_seed(0))
    samples = [Sample(str(i), i, "?", [""], boxes=[[(0.0, 0.0, 0.5, 0.5)]] * items[i]) for i in range(size)]
    return Batch(
        inputs=dict(inputs), answer_ids=ids.to(device), answer_mask=torch.ones_like(ids, device=device),
        key=torch.arange(size, device=device), weight=torch.ones(size, device=device), samples=samples,
    )  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One way to do a step, on one batch; call it to do the step."""

    model: PrunedVLM
    objective: Objective
    batch: Batch

    def __call__(self) -> float:
        """Forward, loss and backward; returns the loss. Gates draw the same noise each time; no gradient is left."""
        assert self.model.pruner is not None
        torch.manual_seed(0)
        loss = self.objective.step(self.model, self.batch).loss
        loss.backward()
        self.model.pruner.zero_grad(set_to_none=True)
        return float(loss.detach())


def sweep(settings: Settings, backbone: Backbone, say: Say) -> Iterator[dict[str, Any]]:
    """One group of figures for each batch size, number of visual tokens and K; see docs/bench.md for its fields."""
    backbone.model.requires_grad_(False)
    for visual in settings.visual_tokens:
        for size in settings.batch_sizes:
            for layer in settings.after_layers:
                depth = (layer + 1) / backbone.facts.num_layers
                kind = {"training": True, "answer_tokens": settings.answer_tokens, "after_layer": layer, "depth": depth}
                yield {**group_of(settings, size, visual, partial(_group, settings, backbone, say, layer)), **kind}


def _group(settings: Settings, backbone: Backbone, say: Say, layer: int, size: int, visual: int) -> dict[str, Any]:
    say(f"batch {size}, {visual} visual tokens, K = {layer}: {', '.join(settings.training)}")
    batch = training_batch(backbone, make_inputs(backbone, size, visual, settings.text_tokens), settings.answer_tokens)
    pruner = Pruner([PruneStage(layer, scorer_of(settings), Threshold())])
    ours = PrunedVLM(backbone, pruner)
    pruner.to(backbone.model.dtype).train()
    models = {OURS: ours, PLAIN: StraightforwardVLM(backbone, pruner)}
    with torch.no_grad():
        prompt = backbone.embed(batch.inputs, ours.vision_layers)
    columns, visual = prompt.mask.shape[1], int(prompt.visual.sum()) // size
    case = StepCase(
        backbone.facts, layer, size, columns, settings.answer_tokens, backbone.text_config.vocab_size,
        scorer=_scorer_flops(ours, replace(batch, prompt=prompt)),
    )  # fmt: skip
    vision = count_step(torch.no_grad()(lambda: backbone.embed(batch.inputs, ours.vision_layers)))
    rows = []
    for step in settings.training:
        for with_vision in (True, False):
            mine = batch if with_vision else replace(batch, prompt=prompt)
            passes = {way: Pass(model, objective_of(step), mine) for way, model in models.items()}
            found = _measure(settings, passes, backbone.model.device, case.with_vision(vision * with_vision), step)
            rows.append({"step": step, "vision_tower": with_vision, **found})
    return {"visual_tokens": visual, "text_tokens": columns - visual, "rows": rows}


def _scorer_flops(model: PrunedVLM, batch: Batch) -> float:
    """FLOPs of the scorer itself, forward and backward, on its inputs."""
    with torch.no_grad():
        (output,) = model.glimpse_forward(batch)
    assert model.pruner is not None
    scorer = model.pruner.stages[0].scorer
    return count_step(lambda: scorer(output.tokens).sum().backward())


def _measure(
    settings: Settings, passes: dict[str, Pass], device: torch.device, case: StepCase, step: str
) -> dict[str, Any]:
    """Seconds of both ways, alternating which goes first; ``gain`` is the median over rounds of their ratio."""
    clock = Clock(device, settings.clock)
    seconds: dict[str, list[float]] = {way: [] for way in passes}
    losses: dict[str, float] = {}
    for number in range(-settings.warmup, settings.repetitions):
        for way in WAYS if number % 2 else reversed(WAYS):
            clock.synchronise()
            begin = clock.stamp()
            losses[way] = passes[way]()
            end = clock.stamp()
            clock.synchronise()
            if number >= 0:
                seconds[way].append(clock.seconds(begin, end))
    gain = figures.figure(seconds[PLAIN], None, seconds[OURS])["vs_hf"]
    peak = {way: peak_bytes(one, device) for way, one in passes.items()}
    flops = {way: count_step(one) for way, one in passes.items()}
    return {
        "seconds": {way: figures.figure(values) for way, values in seconds.items()},
        "gain": gain, "predicted_gain": case.gain(step), "gain_to_predicted": gain["value"] / case.gain(step),
        "flops": flops, "predicted_flops": {OURS: case.ours(step), PLAIN: case.straightforward(step)},
        "peak_bytes": peak, "memory_ratio": peak[OURS] / peak[PLAIN], "loss": losses,
    }  # fmt: skip
