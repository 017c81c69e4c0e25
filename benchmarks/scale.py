"""Training and answering at scale, computed: `python benchmarks/scale.py --output benchmarks/scale.md`.

Nothing is run on a GPU. Memory and traffic of training steps are counted by ``scale_count`` on shapes without data;
times follow from the stated speeds of the hardware.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import yaml
from scale_count import ALL, JOBS, KL, LORA, Job, Shares, Streams, activations, cached, scorer_kept, shares, with_graph

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.bench.sweep import decoder_bytes
from glimpse_lightning.bench.theory import Case
from glimpse_lightning.bench.training_theory import KL as DISTIL
from glimpse_lightning.bench.training_theory import StepCase
from glimpse_lightning.cli.packaged_recipes import recipe_file
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.latency.flops import count_step
from glimpse_lightning.latency.measure import HF, Variant
from glimpse_lightning.objectives import GRPO
from glimpse_lightning.scorers.base import Scorer

MODELS = {"7B": "qwen2.5-vl-7b", "32B": "qwen2.5-vl-32b", "72B": "qwen2.5-vl-72b"}
"""The package's presets, which have the sizes of the published configurations."""
RECIPES = {KL: "qwen2_5_vl_7b/vip_kl", LORA: "qwen2_5_vl_7b/lora_grpo", ALL: "qwen2_5_vl_7b/lora_grpo"}
GB = 1e9


@dataclass(frozen=True)
class Hardware:
    """Assumed speeds of one GPU and of its connections.

    Attributes:
        peak: bf16 FLOP/s.
        utilisation: share of them that matrix products reach.
        read: bytes/s that decoding reads.
        nvlink: bytes/s that a GPU receives from others of its node.
        network: bytes/s that a GPU's adapter receives from other nodes.
        node: GPUs of a node.
        memory: bytes.
    """

    peak: float
    utilisation: float
    read: float
    nvlink: float
    network: float
    node: int
    memory: float

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.peak * self.utilisation

    def receives(self, world: int) -> float:
        """Bytes/s of a gather over ``world`` GPUs. Each byte enters a node once, by the adapters of all its GPUs."""
        return self.nvlink if world <= self.node else min(self.nvlink, self.node * self.network)


@dataclass(frozen=True)
class Question:
    """Sizes of the prompts.

    Attributes:
        visual, text, answer: tokens of a prompt and of an answer.
    """

    visual: int
    text: int
    answer: int

    @property
    def grid(self) -> tuple[int, int]:
        """The nearest rectangle with the given number of tokens."""
        height = next(height for height in range(isqrt(self.visual), 0, -1) if self.visual % height == 0)
        return height, self.visual // height


# -- the models -----------------------------------------------------------------------------------------------------


def recipe(kind: str) -> dict[str, Any]:
    """The section ``model`` of the packaged recipe of a kind of step."""
    model: dict[str, Any] = yaml.safe_load(recipe_file(RECIPES[kind]).read_text())["model"]
    return model


def depth(after_layer: int, layers: int) -> int:
    """K of a model of ``layers`` layers, as deep as ``after_layer`` of the recipe's 28."""
    return round((after_layer + 1) / 28 * layers) - 1


def model_of(preset: str, kind: str) -> tuple[gl.PrunedVLM, tuple[str, ...]]:
    """Model and pruner of a kind of step, on the meta device; and the patterns of its trained parameters."""
    said = recipe(kind)
    dtype = "float32" if kind == ALL else said["dtype"]  # trained weights, as the module chooses where none is given
    backbone = gl.load_backbone(f"random:{preset}", dtype=dtype, device_map="meta")
    scorer, policy = scorer_of(kind), gl.policies.Threshold(**said["policy"]["init_args"])
    layer = depth(said["after_layer"], backbone.facts.num_layers)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(layer, scorer, policy)]))
    if kind == KL:
        return model, gl.objectives.KL.trainable
    options = said["objective"]["init_args"]
    adapters = LoRA(**options["lora"]) if kind == LORA else None
    objective = GRPO(**(options | {"lora": adapters, "rewards": {"exact_match": 1.0}}))
    objective.prepare(model)
    return model, objective.trainable


def scorer_of(kind: str) -> Scorer:
    """The recipe's scorer."""
    named = recipe(kind)["scorer"]
    return gl.scorers.Oracle() if named == "Oracle" else getattr(gl.scorers, named["class_path"])(**named["init_args"])


def job_of(kind: str, facts: ModelFacts, question: Question, share: float) -> Job:
    """The recipe's step, with activations of decoder layers computed again in GRPO's."""
    said = recipe(kind)
    layer, options = depth(said["after_layer"], facts.num_layers), said["objective"]["init_args"]
    answer, group = (question.answer, 1) if kind == KL else (options["max_new_tokens"], options["group_size"])
    kept = round(share * question.visual)
    return Job(kind, layer, question.visual, question.text, kept, answer, group, recompute=kind != KL)


# -- a step -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Bytes that a rank holds and receives in a step on one prompt, and its work.

    Attributes:
        shares: the sharded model.
        job: the step.
        reference: copies of the trained weights, for GRPO's frozen reference and while it is in their place.
        activations: alive when the backward pass begins.
        cache: keys and values of KL's teacher and student, or of rollouts with the logits of their tokens.
        flops: FLOPs, without rollouts' decoding.
        read: bytes that rollouts read while they decode.
    """

    shares: Shares
    job: Job
    reference: int
    activations: int
    cache: int
    flops: float
    read: float

    @property
    def total(self) -> int:
        """Bytes of all: rollouts' caches are gone when activations are kept."""
        held = self.shares.parameters + self.shares.gradients + self.shares.moments
        both = self.activations, self.cache
        return held + self.reference + self.shares.at_once + (sum(both) if self.job.kind == KL else max(both))

    @property
    def traffic(self) -> int:
        """Bytes that the rank receives."""
        return self.shares.gathered(self.job) + self.shares.scattered(self.job)

    def computes(self, hardware: Hardware) -> float:
        """Seconds of computing."""
        return self.flops / hardware.rate + self.read / hardware.read

    def receives(self, hardware: Hardware) -> float:
        """Seconds of gathering and scattering."""
        return self.traffic / hardware.receives(self.shares.world)


def steps(preset: str, kind: str, ranks: Sequence[int], question: Question, share: float) -> Iterator[Step]:
    """A kind of step of a model on each number of ranks."""
    model, trainable = model_of(preset, kind)
    backbone = model.backbone
    facts, vocabulary = backbone.facts, backbone.text_config.vocab_size
    job = job_of(kind, facts, question, share)
    weights = decoder_bytes(Variant(HF, backbone)) // (2 if kind == ALL else 1)  # read as they are gathered
    kept, flops = scored(facts, job.after_layer, question.grid) if kind == KL else (0, 0.0)
    flops += vision_flops(backbone, question.visual)
    flops += kl_flops(job, facts, vocabulary) if kind == KL else grpo_flops(job, facts, vocabulary)
    alive = activations(job, streams_of(backbone, kind, trainable), kept)
    cache, read = caches(job, facts, vocabulary), 0.0
    if kind != KL:
        case = Case(facts, job.group, job.kept, job.text, [], vocabulary, 2)
        read = (job.answer - 1) * case.decode_bytes(weights, job.answer / 2)
    for world in ranks:
        found = shares(*model_of(preset, kind), torch.bfloat16, world)
        yield Step(found, job, 2 * found.gradients * (kind == ALL), alive, cache, flops, read)


def streams_of(backbone: Backbone, kind: str, trainable: tuple[str, ...]) -> Streams:
    """Decoder layers in the data type in which they are gathered; states are float32 after embeddings that are."""
    backbone.layers.to(torch.bfloat16)
    stream = torch.float32 if kind == ALL else torch.bfloat16
    return Streams(with_graph(backbone, trainable), stream, torch.bfloat16 if kind == ALL else None)


@lru_cache
def scored(facts: ModelFacts, after_layer: int, grid: tuple[int, int]) -> tuple[int, float]:
    """Bytes that KL's scorer keeps for its backward pass, and FLOPs of both passes."""
    kept, run = scorer_kept(scorer_of(KL), facts, after_layer, grid)
    return kept, count_step(run)


def caches(job: Job, facts: ModelFacts, vocabulary: int) -> int:
    """Bytes of keys and values in bfloat16, and of rollouts' logits in float32, which ``generate`` returns."""
    if job.kind == KL:
        return cached(facts, job.prompt, 2 * facts.num_layers, 2)
    logits = job.group * job.answer * vocabulary * 4
    return job.group * cached(facts, job.left + job.answer, facts.num_layers, 2) + logits


def kl_flops(job: Job, facts: ModelFacts, vocabulary: int) -> float:
    """FLOPs of a step of distillation, by the package's own count."""
    return StepCase(facts, job.after_layer, 1, job.prompt, job.answer, vocabulary).ours(DISTIL)


def grpo_flops(job: Job, facts: ModelFacts, vocabulary: int) -> float:
    """FLOPs of a GRPO step without its decoding: rollouts' prefill, the reference, and answers with a graph.

    The backward pass costs a forward pass where adapters alone are trained, and two where all weights are.
    """
    stage = StageTokens(job.after_layer, job.kept)
    prefill = sum(Case(facts, 1, job.visual, job.text, [stage], vocabulary, 2).prefill_flops())
    whole = sum(Case(facts, 1, job.visual, job.text, [], vocabulary, 2).prefill_flops())
    prefix = facts.num_layers * facts.layer_flops(job.left)
    forward = prefill + prefix + answer_flops(job, facts, vocabulary)
    return prefill + whole + forward * (2 + job.recompute + (2 if job.kind == ALL else 1))


def answer_flops(job: Job, facts: ModelFacts, vocabulary: int) -> float:
    """FLOPs of all answers' tokens but the last, after the pruned prompt; the first is the prompt's own prediction."""
    rows, queries = job.answer - 1, facts.num_heads * facts.head_dim
    layer = facts.layer_flops(1) + 4 * queries * (job.left + rows - 1)
    return float(job.group * rows * (facts.num_layers * layer + 2 * facts.hidden_size * vocabulary))


def vision_flops(backbone: Backbone, tokens: int) -> float:
    """FLOPs of Qwen2.5-VL's vision tower on an image of ``tokens`` merged tokens, whose windows are all full."""
    vision = backbone.model.config.vision_config
    merged = vision.spatial_merge_size**2
    patches, width = tokens * merged, vision.hidden_size
    window = min(patches, (vision.window_size // vision.patch_size) ** 2)
    whole = len(vision.fullatt_block_indexes)
    attended = whole * patches + (vision.depth - whole) * window
    linear = vision.depth * (4 * width**2 + 3 * width * vision.intermediate_size)
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    merger = (merged * width) ** 2 + merged * width * vision.out_hidden_size
    return 2.0 * (patches * (linear + pixels + 2 * attended * width) + tokens * merger)


# -- many questions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answering:
    """Work of one question: FLOPs of tower and prefill (scoring included), and bytes that decoding reads."""

    tower: float
    prefill: float
    read: float

    def seconds(self, hardware: Hardware) -> float:
        """Seconds of one GPU."""
        return (self.tower + self.prefill) / hardware.rate + self.read / hardware.read


def answering(backbone: Backbone, question: Question, layer: int | None, share: float, batch: int) -> Answering:
    """A question of which ``share`` of the visual tokens stay after ``layer``; ``None``: all, without a pruner."""
    facts, vocabulary = backbone.facts, backbone.text_config.vocab_size
    stages = [] if layer is None else [StageTokens(layer, round(share * question.visual))]
    glimpse = (1, layer) if layer is not None and layer >= 0 else (0, -1)
    case = Case(facts, batch, question.visual, question.text, stages, vocabulary, 2, *glimpse)
    prefill = sum(case.prefill_flops()) / batch
    if layer is not None and layer >= 0:
        prefill += scored(facts, layer, question.grid)[1] / 3  # backward, a product has two
    read = (question.answer - 1) * case.decode_bytes(decoder_bytes(Variant(HF, backbone)), question.answer / 2) / batch
    return Answering(vision_flops(backbone, question.visual), prefill, read)


# -- the record -------------------------------------------------------------------------------------------------------


def training_rows(found: dict[tuple[str, str], list[Step]], hardware: Hardware) -> Iterator[str]:
    """Memory, traffic and times of all steps, as rows of a table."""
    for (name, kind), each in found.items():
        for step in each:
            held = step.shares
            parts = (held.parameters, held.gradients, held.moments, step.reference, held.at_once, step.activations,
                     step.cache, step.total)  # fmt: skip
            computes, receives = step.computes(hardware), step.receives(hardware)
            columns = [
                name, kind, f"{held.world}", *(f"{part / GB:.1f}" for part in parts),
                "yes" if step.total < hardware.memory else "**no**",
                f"{held.gathered(step.job) / GB:,.0f}", f"{held.scattered(step.job) / GB:.2f}",
                f"{computes:.2f}", f"{receives:.2f}", f"{receives / computes:.2f}",
                f"{step.traffic / computes / GB:,.0f}",
            ]  # fmt: skip
            yield f"| {' | '.join(columns)} |"


def answering_rows(
    name: str, backbone: Backbone, question: Question, options: Any, hardware: Hardware
) -> Iterator[str]:
    """GPU hours of all questions at each budget, as rows of a table."""
    after = depth(recipe(KL)["after_layer"], backbone.facts.num_layers)
    cases = [("all", None, 1.0), *((place, layer, share) for place, layer in (("after K", after), ("before 0", -1))
                                   for share in options.retention)]  # fmt: skip
    whole = None
    for place, layer, share in cases:
        one = answering(backbone, question, layer, share, options.decode_batch)
        seconds = one.seconds(hardware)
        whole = seconds if whole is None else whole
        hours = options.images / 3600
        columns = [
            name, place if layer is None else f"{place} ({layer})" if layer >= 0 else place, f"{share:.0%}",
            f"{one.tower / 1e12:.1f}", f"{one.prefill / 1e12:.1f}", f"{one.read / GB:.1f}",
            f"{one.read / hardware.read * hours:,.0f}", f"{seconds * hours:,.0f}", f"{1 - seconds / whole:.0%}",
        ]  # fmt: skip
        yield f"| {' | '.join(columns)} |"


def assumptions(options: Any, hardware: Hardware) -> Iterator[str]:
    """The table of assumptions, piece by piece."""
    yield "| assumption | value | option |\n|---|---|---|"
    for words, value, option in (
        ("peak, dense bf16", f"{hardware.peak / 1e12:.0f} TFLOP/s", "peak"),
        ("share of it that is reached", f"{hardware.utilisation:.0%}", "utilisation"),
        ("reading of memory while decoding", f"{hardware.read / GB:,.0f} GB/s", "read"),
        ("NVLink, to each GPU of a node", f"{hardware.nvlink / GB:.0f} GB/s", "nvlink"),
        ("network, to each GPU's adapter", f"{hardware.network / GB:.0f} GB/s", "network"),
        ("GPUs of a node", f"{hardware.node}", "node"),
        ("memory of a GPU", f"{hardware.memory / GB:.0f} GB", "memory"),
        ("visual tokens of an image", f"{options.visual:,}", "visual"),
        ("other tokens of a prompt", f"{options.text}", "text"),
        ("tokens of an answer (GRPO: the recipe's 128)", f"{options.answer}", "answer"),
        ("share of visual tokens that GRPO's rollouts keep", f"{options.share:.0%}", "share"),
        ("answers that are decoded at once", f"{options.decode_batch}", "decode_batch"),
        ("images, one question each", f"{options.images:,}", "images"),
    ):
        yield f"| {words} | {value} | `--{option}` |"


INTRODUCTION = """# Training and answering at scale, computed

**Computed, not run**: `python benchmarks/scale.py --output benchmarks/scale.md`. No GPU has been used. Shapes are the
package's presets of Qwen2.5-VL-7B, -32B and -72B on the meta device, sharded by the package's own `shard`. Steps are
those of `qwen2_5_vl_7b/vip_kl` and `qwen2_5_vl_7b/lora_grpo` with `trainer/fsdp2` and `bf16-mixed`, one prompt on each
rank. "GRPO, all weights" is the latter with `lora: null` and float32 weights. K = 18 of 28 layers, and as deep in the
larger models (42 of 64, 53 of 80), which have no recipes.
"""
CHECKS = """
## Checks

`tests/benchmark/test_scale.py` compares these counts with steps of a small model (glimpse-tiny's shapes, random weights
and a head of its own):

| count | check |
|---|---|
| parameters, gradients | equal on both of two gloo ranks under `FSDP2`, after two steps of each job |
| optimizer states | equal on the first rank; up to 0.2 % fewer on the last, whose shares AdamW does not pad |
| bytes gathered and scattered in a step | equal on both ranks, in the first step and in the second |
| activations | within 10 % of the storages alive when the backward pass begins, in one process |
| FLOPs of tower, KL and GRPO | within 10 % of the operators that ran |

**Not checked**: memory gathered at once, and memory of a rank in all (CUDA's allocator, workspace of kernels, NCCL's
buffers); the copies for GRPO's reference; caches of rollouts; all times, which assume full use of each link, no latency
of calls (a GRPO step of 72B makes more than 11,000 gathers) and no overlap of gathering and computing.

## A training step of one rank

GB = 1e9 bytes. "At once": a decoder layer that stays gathered, and the largest unit twice (as it is gathered, and as
it is copied out). "Cache": keys and values of KL's teacher and student, or of GRPO's rollouts with their logits. "In
all" takes the larger one of activations and cache for GRPO. KL keeps its activations; GRPO computes those of decoder
layers again (`activation_checkpointing: true`). "Break-even": GB/s below which gathering takes longer than computing.
"""


def record(options: Any) -> Iterator[str]:
    """The record, piece by piece."""
    hardware = Hardware(
        options.peak * 1e12, options.utilisation, options.read * GB, options.nvlink * GB, options.network * GB,
        options.node, options.memory * GB,
    )  # fmt: skip
    question = Question(options.visual, options.text, options.answer)
    yield INTRODUCTION
    yield from assumptions(options, hardware)
    yield CHECKS
    heads = ["model", "job", "GPUs", "parameters GB", "gradients", "AdamW", "reference", "at once", "activations",
             "cache", "in all", "fits", "gathered GB", "scattered GB", "computing s", "gathering s", "ratio",
             "break-even GB/s"]  # fmt: skip
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    found = {
        (name, kind): list(steps(preset, kind, options.ranks, question, options.share))
        for name, preset in MODELS.items()
        for kind in JOBS
    }
    yield from training_rows(found, hardware)
    yield f"""
## {options.images:,} images

GPU hours of tower, prefill and decoding; the weights of 32B and 72B are on several GPUs, whose exchange is not counted.
"After K" includes the glimpse and VIP; "before 0" no scorer. Savings are of GPU hours, tower included.
"""
    heads = ["model", "pruned", "kept", "tower TFLOP", "prefill TFLOP", "decoding reads GB", "decoding hours",
             "GPU hours", "saved"]  # fmt: skip
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for name, preset in MODELS.items():
        backbone = gl.load_backbone(f"random:{preset}", dtype="bfloat16", device_map="meta")
        yield from answering_rows(name, backbone, question, options, hardware)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s, dense bf16 (H100 SXM)")
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--read", type=float, default=2300.0, help="GB/s while decoding (70 % of 3,350)")
    parser.add_argument("--nvlink", type=float, default=360.0, help="GB/s to a GPU (80 % of 450)")
    parser.add_argument("--network", type=float, default=40.0, help="GB/s to a GPU's adapter (80 % of 400 Gbit/s)")
    parser.add_argument("--node", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80.0, help="GB")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--visual", type=int, default=2048)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.11)
    parser.add_argument("--retention", type=float, nargs="+", default=[0.33, 0.11, 0.05])
    parser.add_argument("--decode_batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=100_000_000)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the record."""
    options = parsed(arguments)
    options.output.write_text("\n".join(record(options)) + "\n")


if __name__ == "__main__":
    main()
