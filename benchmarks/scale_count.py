"""Counts for ``benchmarks/scale.py``: memory and traffic of a training step under FSDP2, from tensors without data.

Models are built on the meta device and sharded by the package's own ``shard`` over a process group of torch's that
moves nothing. Parameters, gradients and optimizer states follow from the shares; gathers from ``Job.gathers``;
activations from the storages that are alive after one decoder layer has run on the meta device.
``tests/benchmark/test_scale.py`` compares these counts with steps of a small model on two gloo ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.engine.prompt_cache import PrefixView, PromptCache, fork_cache
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.sharding import blocks, shard
from glimpse_lightning.objectives.rollouts import token_log_probs
from glimpse_lightning.scorers.base import Scorer

KL, LORA, ALL = JOBS = "KL", "GRPO, LoRA", "GRPO, all weights"


@dataclass(frozen=True)
class Job:
    """A training step on one prompt on each rank.

    Attributes:
        kind: one of ``JOBS``.
        after_layer: K, the last layer that sees all tokens.
        visual, text: visual and other tokens of the prompt.
        kept: visual tokens after K, of GRPO.
        answer: tokens of an answer.
        group: answers to the prompt, of GRPO.
        recompute: whether activations of decoder layers are computed again in the backward pass.
    """

    kind: str
    after_layer: int
    visual: int
    text: int
    kept: int
    answer: int
    group: int
    recompute: bool

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.visual + self.text

    @property
    def left(self) -> int:
        """Tokens of the pruned prompt."""
        return self.kept + self.text

    def gathers(self, unit: Unit) -> int:
        """How often a step gathers ``unit``; of GRPO with ``forward: embeddings``, the recipe's.

        A decoding step runs embedding, layers, norm and head once. The first decoder layer is gathered once more in
        KL's backward pass. The last one is still gathered when a backward pass begins.
        """
        last = unit.kind == "layer" and unit.index == unit.of - 1
        if self.kind == KL:
            first = unit.kind == "layer" and unit.index == 0
            each = {"vision": 1, "embedding": 4, "layer": 5, "norm": 3, "head": 3, "glimpse": 1, "scorer": 2}
            return each[unit.kind] + first - last
        decoded = self.answer - 1
        embedding = 8 if self.kind == ALL else 4  # trained embeddings are looked up again for every forward
        each = {"vision": 1, "embedding": embedding, "layer": 11, "norm": 8, "head": 8}
        return each[unit.kind] - last + (0 if unit.kind == "vision" else decoded)

    def reductions(self, unit: Unit) -> int:
        """How often a step reduces the gradients of ``unit``."""
        return int(unit.trained > 0)


@dataclass(frozen=True)
class Unit:
    """A module that FSDP2 gathers at once. Bytes are those of one rank's share, padded to equal shares.

    Attributes:
        kind: ``vision``, ``embedding``, ``layer``, ``norm``, ``head``, ``glimpse`` or ``scorer``.
        index, of: number among the units of its kind, and their number.
        held: bytes of parameters.
        sent: bytes that the rank adds to a gather.
        trained: bytes of gradients.
        reduced: bytes of gradients in the data type in which they are added up.
        moments: bytes of AdamW's states.
    """

    kind: str
    index: int
    of: int
    held: int
    sent: int
    trained: int
    reduced: int
    moments: int


@dataclass(frozen=True)
class Shares:
    """A sharded model, from one rank.

    Attributes:
        units: modules that are gathered.
        whole: bytes of parameters that every rank holds whole.
        world: number of ranks.
    """

    units: list[Unit]
    whole: int
    world: int

    @property
    def parameters(self) -> int:
        """Bytes of parameters that a rank holds."""
        return self.whole + sum(unit.held for unit in self.units)

    @property
    def gradients(self) -> int:
        """Bytes of gradients that a rank holds."""
        return sum(unit.trained for unit in self.units)

    @property
    def moments(self) -> int:
        """Bytes of optimizer states that a rank holds."""
        return sum(unit.moments for unit in self.units)

    @property
    def at_once(self) -> int:
        """Bytes of gathered weights at once: a decoder layer stays while the largest unit is gathered and copied."""
        layer = max(unit.sent for unit in self.units if unit.kind == "layer")
        return self.world * (layer + 2 * max(unit.sent for unit in self.units))

    def gathered(self, job: Job) -> int:
        """Bytes that a rank receives from others in the gathers of a step."""
        return (self.world - 1) * sum(job.gathers(unit) * unit.sent for unit in self.units)

    def scattered(self, job: Job) -> int:
        """Bytes that a rank receives from others where gradients are added up."""
        return (self.world - 1) * sum(job.reductions(unit) * unit.reduced for unit in self.units)


# -- shares ---------------------------------------------------------------------------------------------------------


class _Sharded(Exception):
    """Raised where ``shard`` would give parameters values."""


def _stop() -> None:
    raise _Sharded


@contextmanager
def pretended_ranks(world: int) -> Iterator[DeviceMesh]:
    """The first of ``world`` ranks, in a process group that moves nothing."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield DeviceMesh("cpu", list(range(world)))
    finally:
        torch.distributed.destroy_process_group()


def shares(model: PrunedVLM, trainable: tuple[str, ...], gather_dtype: torch.dtype | None, world: int) -> Shares:
    """Shard ``model`` over ``world`` ranks as the package does; it is unusable afterwards."""
    model.to("meta")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in trainable))
    with pretended_ranks(world) as mesh, suppress(_Sharded):
        shard(model, mesh, gather_dtype, fill=_stop)
    return read_shares(model, gather_dtype, world)


def read_shares(model: PrunedVLM, gather_dtype: torch.dtype | None, world: int) -> Shares:
    """The units of a sharded model, and the bytes of the rest, which is whole."""
    backbone = model.backbone
    low = {id(block): gather_dtype for block in blocks(backbone)}
    found = [(module, _own(module)) for module in model.modules() if isinstance(module, FSDPModule) and _own(module)]
    kinds = [_kind(module, model) for module, _ in found]
    units = [
        _unit(kind, kinds[:place].count(kind), kinds.count(kind), own, low.get(id(module)), world)
        for place, ((module, own), kind) in enumerate(zip(found, kinds, strict=True))
    ]
    return Shares(units, sum(_bytes(p) for p in model.parameters() if not isinstance(p, DTensor)), world)


def _own(module: nn.Module) -> list[DTensor]:
    """Sharded parameters of a unit that are in none of the units within it."""
    inner = {id(p) for m in module.modules() if m is not module and isinstance(m, FSDPModule) for p in m.parameters()}
    return [p for p in module.parameters() if isinstance(p, DTensor) and id(p) not in inner]


def _kind(module: nn.Module, model: PrunedVLM) -> str:
    backbone, pruner = model.backbone, model.pruner
    stages = [] if pruner is None else pruner.stages
    named: list[tuple[str, list[Any]]] = [
        ("layer", list(backbone.layers)), ("embedding", [backbone.model.get_input_embeddings()]),
        ("norm", [backbone.decoder.norm]), ("head", [backbone.lm_head]),
        ("glimpse", [stage.scorer.glimpse for stage in stages]), ("scorer", [stage.scorer for stage in stages]),
    ]  # fmt: skip
    return next((kind for kind, modules in named if any(module is each for each in modules)), "vision")


def _unit(kind: str, index: int, of: int, own: list[DTensor], low: torch.dtype | None, world: int) -> Unit:
    rows = [-(-p.shape[0] // world) * (p.numel() // p.shape[0]) for p in own]
    trained = [(p, size) for p, size in zip(own, rows, strict=True) if p.requires_grad]
    return Unit(
        kind, index, of,
        held=sum(size * p.element_size() for p, size in zip(own, rows, strict=True)),
        sent=sum(size * (low or p.dtype).itemsize for p, size in zip(own, rows, strict=True)),
        trained=sum(size * p.element_size() for p, size in trained),
        reduced=sum(size * (torch.float32 if low else p.dtype).itemsize for p, size in trained),
        moments=sum(2 * size * p.element_size() + 4 for p, size in trained),  # and the number of steps, in float32
    )  # fmt: skip


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# -- activations ----------------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Storages that operators have made, as long as something holds them."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self, *known: Tensor) -> int:
        """Bytes of the storages that are alive, without those of ``known``."""
        left_out = {tensor.untyped_storage()._cdata for tensor in known}
        made = self._made.items()
        return sum(size for place, (held, size) in made if place not in left_out and not held.expired())


class AsOnDevice(TorchFunctionMode):
    """On the meta device, the kernel of attention and the casts of autocast that a device with data would use.

    Args:
        low: data type in which matrices are multiplied; ``None``: that of the inputs.
    """

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.linear and self.low is not None:
            args = tuple(x.to(self.low) if isinstance(x, Tensor) else x for x in args)
        return func(*args, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        low = self.low or query.dtype
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        states = (x.to(low) for x in (query, key, value))
        return flash(*states, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@dataclass(frozen=True)
class Rows:
    """Rows that pass one decoder layer with a graph.

    Attributes:
        batch, rows: number of sequences, and of rows in each.
        prefix: keys and values before them, of earlier rows.
        copies: copies that are made of the keys and values of a prompt, for its answers; 1: none.
        gated: whether soft gates act on keys.
        caches: whether keys and values of the rows stay in a cache.
    """

    batch: int
    rows: int
    prefix: int = 0
    copies: int = 1
    gated: bool = False
    caches: bool = False


@dataclass(frozen=True)
class Streams:
    """Decoder layers on the meta device, and the activations that they keep for the backward pass.

    Attributes:
        backbone: a model on the meta device, whose trained parameters require a gradient.
        stream: data type of the states between layers.
        low: as in :class:`AsOnDevice`.
    """

    backbone: Backbone
    stream: torch.dtype
    low: torch.dtype | None = None

    def layer(self, rows: Rows) -> int:
        """Bytes that one layer keeps, its input included and its output not."""
        facts, backbone = self.backbone.facts, self.backbone
        new = torch.empty(0, dtype=self.stream, device="meta").new_empty
        keys = rows.prefix + rows.rows
        cos = new(1, rows.rows, facts.head_dim)
        bias = new(rows.batch, keys if not rows.prefix else rows.prefix).requires_grad_() if rows.gated else None
        mask = new(rows.batch, 1, rows.rows, keys).bool() if rows.prefix and rows.rows > 1 else None
        source, given = PromptCache(), [x for x in (cos, bias, mask) if x is not None]
        if rows.prefix:
            states = new(rows.batch // rows.copies, facts.num_kv_heads, rows.prefix, facts.head_dim)
            given += source.update(states, states, 0)
        tap = AttentionTap(key_bias=bias) if rows.gated else None
        with Alive() as alive, AsOnDevice(self.low):
            source = fork_cache(source, rows.copies)
            hidden = new(rows.batch, rows.rows, facts.hidden_size).requires_grad_()
            cache = PrefixView(source, rows.prefix) if rows.prefix else source
            out = backbone.run_layer(0, hidden, mask, (cos, cos), cache, tap)
            del hidden
            if not rows.prefix and not rows.caches:  # as compaction replaces them
                source.layers[0].keys = source.layers[0].values = new(0)
            del source, cache
        return alive.bytes(out, *given, *backbone.model.parameters())

    def head(self, loss: Callable[[Tensor], Tensor], batch: int, rows: int) -> int:
        """Bytes that norm, head and ``loss`` of logits ``[batch, rows, vocabulary]`` keep."""
        hidden = torch.empty(batch, rows, self.backbone.facts.hidden_size, dtype=self.stream, device="meta")
        hidden.requires_grad_()
        with Alive() as alive, AsOnDevice(self.low):
            out = loss(self.backbone.logits(hidden))
        return alive.bytes(out, hidden, *self.backbone.model.parameters())


def cached(facts: ModelFacts, tokens: int, layers: int, element: int) -> int:
    """Bytes of keys and values of ``tokens`` in ``layers`` layers."""
    return 2 * facts.num_kv_heads * facts.head_dim * tokens * layers * element


def activations(job: Job, streams: Streams, scorer: int = 0) -> int:
    """Bytes alive when a step's backward pass begins.

    Args:
        scorer: bytes that the scorer keeps.
    """
    streams.backbone.recompute = job.recompute
    return _distilled(job, streams, scorer) if job.kind == KL else _replayed(job, streams)


def _distilled(job: Job, streams: Streams, scorer: int) -> int:
    """The glimpse up to K, the student's prompt after K, and its answer in all layers.

    Layers that are computed again hold the keys and values of teacher and student.
    """
    facts = streams.backbone.facts
    early, late = job.after_layer + 1, facts.num_layers - job.after_layer - 1
    glimpse = early * streams.layer(Rows(1, 1, job.prompt))
    prompt = late * streams.layer(Rows(1, job.prompt, gated=True, caches=job.recompute))
    answer = facts.num_layers * streams.layer(Rows(1, job.answer - 1, job.prompt, gated=True))
    held = cached(facts, job.prompt, early + facts.num_layers, streams.stream.itemsize) if job.recompute else 0
    vocabulary = streams.backbone.text_config.vocab_size
    teacher = torch.empty(1, job.answer, vocabulary, dtype=streams.stream, device="meta")
    mask = torch.ones(1, job.answer, device="meta")
    head = streams.head(lambda logits: token_kl(teacher, logits, mask), 1, job.answer)
    return glimpse + prompt + answer + held + scorer + head + _bytes(teacher)


def _replayed(job: Job, streams: Streams) -> int:
    """The pruned prefill, the prefix from embeddings, and the answers."""
    facts, layers = streams.backbone.facts, streams.backbone.facts.num_layers
    early = job.after_layer + 1
    prefill = early * streams.layer(Rows(1, job.prompt)) + (layers - early) * streams.layer(
        Rows(1, job.left, caches=job.recompute)
    )
    held = cached(facts, job.left, early, streams.stream.itemsize) if job.recompute else 0
    prefix = layers * streams.layer(Rows(1, job.left, caches=job.recompute))
    answers = layers * streams.layer(Rows(job.group, job.answer - 1, job.left, copies=job.group))
    ids = torch.zeros(job.group, job.answer, dtype=torch.long, device="meta")
    head = streams.head(lambda logits: token_log_probs(logits, ids, 1.0), job.group, job.answer)
    embedded = 2 * job.prompt * facts.hidden_size * streams.stream.itemsize  # before layer 0, and after K
    return prefill + held + prefix + answers + head + embedded


def scorer_kept(
    scorer: Scorer, facts: ModelFacts, after_layer: int, grid: tuple[int, int]
) -> tuple[int, Callable[[], Any]]:
    """Bytes that a scorer keeps on an image of ``grid`` tokens, and a function that runs it forward and backward."""
    mine = deepcopy(scorer)
    mine.build(facts, after_layer)
    tokens = _tokens(mine, facts, grid)
    with Alive() as alive:
        out = mine.train()(tokens)
    given = [*tokens.probes.values(), *tokens.vision.values()]
    kept = alive.bytes(out, *mine.parameters(), *given) + sum(_bytes(states) for states in given)
    return kept, lambda: mine(tokens).sum().backward()


def _tokens(scorer: Scorer, facts: ModelFacts, grid: tuple[int, int]) -> VisualTokens:
    count = grid[0] * grid[1]
    zeros, number = torch.zeros(count, dtype=torch.long), torch.arange(count)
    needs = scorer.requires
    return VisualTokens(
        embeds=torch.empty(count, 0), hidden=torch.empty(count, 0), item=zeros, sample=zeros,
        grid=torch.tensor([[1, *grid]]), item_sample=zeros[:1], key=zeros[:1], facts=facts,
        position=torch.stack([zeros, number // grid[1], number % grid[1]], 1),
        probes={
            name: torch.zeros(count, len(probe.layers) * facts.num_heads, requires_grad=True)
            for name, probe in needs.probes.items()
        },
        vision={
            tap: torch.zeros(count, facts.vision_hidden_size, dtype=torch.bfloat16) for tap in needs.vision_layers
        },
    )  # fmt: skip


def with_graph(backbone: Backbone, trainable: tuple[str, ...]) -> Backbone:
    """The backbone with gradients for its trained parameters, and dropout in adapters as in training."""
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(any(fnmatch(f"model.{name}", pattern) for pattern in trainable))
    for module in backbone.layers.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout.train()
    return backbone
