"""What ``benchmarks/gpu.py`` measures: one function for each part, in the order in which they matter.

A part takes a :class:`Bench` and returns ``rows`` (of one table), ``groups`` (of ``bench``'s record) or both, and
``goals``: ``(what was asked for, what was got, whether it is met)``. A figure with an interval is a mapping with
``value``, ``low`` and ``high``; times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList

from glimpse_lightning import scorers
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.bench import figures
from glimpse_lightning.bench.inputs import make_inputs
from glimpse_lightning.bench.settings import Settings
from glimpse_lightning.bench.sweep import case_of, decoder_bytes, sweep
from glimpse_lightning.bench.training import Pass, objective_of, training_batch
from glimpse_lightning.bench.training_theory import KL, MASK
from glimpse_lightning.bench.variants import backbone_of, variants
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.latency.clock import Clock, TokenClock
from glimpse_lightning.latency.measure import HF, UNPRUNED, Variant
from glimpse_lightning.latency.memory import CPU_WAY, CUDA_WAY, peak_bytes
from glimpse_lightning.latency.phases import AFTER, BEFORE, SCORING
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import GRPO
from glimpse_lightning.policies import KeepRatio, Threshold
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime import machine

Rows = list[dict[str, Any]]
Run = Callable[[], dict[str, float]]
GIB = 2**30


@dataclass(frozen=True)
class Scale:
    """Sizes that one run measures.

    Attributes:
        base: model, data type, kernel, device and scorer of all parts.
        article: visual tokens, tokens kept and K of the article's own efficiency table.
        overhead: visual tokens of prompts that an unpruned prefill is compared on.
        lengths, layers, retention: the grid that prefill is measured on.
        decode_batches, decode_tokens, decode_share: prompts at once, visual tokens of each, and share that is left.
        tokens: visual tokens of the parts that measure scorers and training steps.
        rounds: of everything that is timed.
    """

    base: Settings
    article: tuple[int, int, int]
    overhead: tuple[int, ...]
    lengths: tuple[int, ...]
    layers: tuple[int, ...]
    retention: tuple[float, ...]
    decode_batches: tuple[int, ...]
    decode_tokens: int
    decode_share: float
    tokens: int
    rounds: int


SCALES = {
    "gpu": Scale(
        Settings("random:qwen2.5-vl-7b", "bfloat16", device="cuda", new_tokens=2),
        (5074, 202, 18), (576, 2048, 5000), (2048, 5000), (-1, 2, 18), (0.05, 0.11), (32, 64), 5000, 0.11, 2048, 15,
    ),
    "rehearsal": Scale(
        Settings(
            "glimpse-tiny", device="cpu", new_tokens=2, text_tokens=24,
            scorer_args={"attention_dim": 16, "condition_dim": 16, "heads": 2, "vision_layers": [1]},
        ),
        (80, 8, 5), (16,), (48,), (-1, 3), (0.11,), (2,), 48, 0.11, 36, 2,
    ),
}  # fmt: skip
"""``gpu`` is what a card is asked for, ``rehearsal`` the same on a CPU in half a minute."""


@dataclass
class Bench:
    """The model under test and what it is measured with; the model is made when a part first asks for it."""

    scale: Scale
    say: Callable[[str], None] = field(default=print)

    @cached_property
    def backbone(self) -> Backbone:
        backbone = backbone_of(self.scale.base)
        backbone.model.requires_grad_(False)
        return backbone

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.backbone.model.device)

    def settings(self, **changes: Any) -> Settings:
        warmup = min(3, self.scale.rounds)
        return replace(self.scale.base, repetitions=self.scale.rounds, warmup=warmup, **changes)

    def inputs(self, visual: int, batch: int = 1) -> dict[str, Any]:
        return make_inputs(self.backbone, batch, visual, self.scale.base.text_tokens)

    def scorer(self) -> scorers.Scorer:
        return getattr(scorers, self.scale.base.scorer)(**self.scale.base.scorer_args)

    def pruned(self, layer: int, scorer: scorers.Scorer, policy: Any) -> PrunedVLM:
        pruner = Pruner([PruneStage(layer, scorer, policy)])
        model = PrunedVLM(self.backbone, pruner)
        pruner.to(self.backbone.model.dtype).requires_grad_(False)
        return model

    def rounds(self, runs: Mapping[str, Run], rounds: int) -> dict[str, dict[str, list[float]]]:
        """Figures of each of ``runs`` by name, in rounds that each begin with another one."""
        found: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
        names = list(runs)
        for number in range(-min(3, rounds), rounds):
            start = number % len(names)
            for name in (*names[start:], *names[:start]):
                for key, value in runs[name]().items():
                    if number >= 0:
                        found[name].setdefault(key, []).append(value)
        return found

    @torch.no_grad()
    def prefill(self, variant: Variant, inputs: Mapping[str, Any]) -> dict[str, float]:
        """Seconds of one prefill by phase, and of ``prefill`` (all but the vision tower)."""
        recorder = variant.recorder(self.clock.stamp)
        self.clock.synchronise()
        with recorder.recording():
            variant.prefill(inputs, [""] * len(inputs["input_ids"]))
        self.clock.synchronise()
        spent = recorder.spent(self.clock.seconds)
        return {**spent, "prefill": spent[BEFORE] + spent[SCORING] + spent[AFTER]}


def versus(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """The median of paired ratios with its 95 % interval."""
    return figures.figure(values, None, others)["vs_hf"]


# -- a. the article's own point ---------------------------------------------------------------------------------------


def article(bench: Bench) -> dict[str, Any]:
    """GlimpsePrune's efficiency table: its numbers of tokens, its K, this machine."""
    visual, kept, layer = bench.scale.article
    settings = bench.settings(visual_tokens=[visual], after_layers=[layer], retention=[kept / visual])
    (group,) = sweep(settings, variants(settings, bench.backbone), bench.say)
    hf, _, pruned = (row["figures"] for row in group["variants"])
    weights = sum(weight.nbytes for weight in bench.backbone.model.parameters())
    peaks = [one["peak_bytes"]["median"] for one in (hf, pruned)]
    theory = {name: pruned[name]["theory"] / hf[name]["median"] for name in ("prefill", "ttft")}
    rows: Rows = [
        {"figure": "decoder's prefill", "article": 0.691, "theory": theory["prefill"],
         "got": pruned["prefill"]["vs_hf"]},
        {"figure": "time to the first token, vision tower included", "theory": theory["ttft"],
         "got": pruned["ttft"]["vs_hf"]},
        {"figure": "peak memory, weights included", "article": 0.728,
         "got": (weights + peaks[1]) / (weights + peaks[0])},
        {"figure": "peak memory above the weights", "got": peaks[1] / peaks[0]},
        {"figure": "keys and values, in tokens, averaged over the layers", "article": 202.5 / 5073.9,
         "got": pruned["kv_length"]["median"] / hf["kv_length"]["median"]},
    ]  # fmt: skip
    note = (
        f"{kept} of {visual} visual tokens are kept behind layer {layer}, and {group['text_tokens']} others; ratios to "
        f"Hugging Face's own forward. Peak memory: {peaks[0] / GIB:.2f} and {peaks[1] / GIB:.2f} GiB above "
        f"{weights / GIB:.2f} GiB of weights. The article's length of keys and values counts no text."
    )
    return {"rows": rows, "groups": [group], "note": note, "goals": savings([group])}


def savings(groups: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Goals of pruned prefills: where theory saves at least half, 0.95 of it, else 1.03 of what is attainable."""
    goals = []
    for group in groups:
        for row in group.get("variants", []):
            prefill = row["figures"]["prefill"]
            if "attainable" not in prefill:
                continue
            what = f"prefill, {group['visual_tokens']} tokens, {row['name']}"
            hf = group["variants"][0]["figures"]["prefill"]["median"]
            saved, ratio = 1 - prefill["theory"] / hf, prefill["vs_hf"]
            if saved >= 0.5:
                got = {"value": 1 - ratio["value"], "low": 1 - ratio["high"], "high": 1 - ratio["low"]}
                got = {name: value / saved for name, value in got.items()}
                goals.append([f"{what}: realised / theoretical saving >= 0.95", got, got["value"] >= 0.95])
            else:
                factor = hf / prefill["attainable"]
                got = {name: value * factor for name, value in ratio.items()}
                goals.append([f"{what}: measured / attainable <= 1.03", got, got["value"] <= 1.03])
    return goals


# -- b. keep-all equals Hugging Face ----------------------------------------------------------------------------------


@torch.no_grad()
def equality(bench: Bench) -> dict[str, Any]:
    """Our logits against Hugging Face's, without a pruner and with one that keeps all, and what that costs."""
    backbone, rows, goals = bench.backbone, [], []
    last = backbone.facts.num_layers - 2
    models = {
        UNPRUNED: PrunedVLM(backbone),
        "keep-all": bench.pruned(min(bench.scale.article[2], last), scorers.AttentionRank(), KeepRatio(1.0)),
    }
    compared = {name: Variant(name, backbone, model) for name, model in models.items()}
    hf = Variant(HF, backbone)
    for visual in bench.scale.overhead:
        inputs = bench.inputs(visual)
        want, _, _ = hf.prefill(inputs, [""])
        again, _, _ = hf.prefill(inputs, [""])
        runs = {one.name: partial(bench.prefill, one, inputs) for one in (hf, *compared.values())}
        found = bench.rounds(runs, 2 * bench.scale.rounds)
        for name, variant in compared.items():
            got, _, _ = variant.prefill(inputs, [""])
            ratio = versus(found[name]["prefill"], found[HF]["prefill"])
            ours, twice = (float((each - want).abs().max()) for each in (got, again))
            rows.append(
                {
                    "visual tokens": visual, "model": name, "largest logit": float(want.abs().max()),
                    "difference": ours, "Hugging Face twice": twice,
                    "same token": bool((got.argmax(-1) == want.argmax(-1)).all()), "prefill / HF": ratio,
                    "prefill (s)": median(found[name]["prefill"]),
                }
            )  # fmt: skip
            if name == UNPRUNED:
                goals.append([f"unpruned prefill, {visual} tokens <= 1.02 of HF's", ratio, ratio["value"] <= 1.02])
    return {"rows": rows, "goals": goals}


# -- c. prefill -------------------------------------------------------------------------------------------------------


def prefill(bench: Bench) -> dict[str, Any]:
    """Prefill, time to the first token and memory, over lengths, K and retention.

    Before the decoder (K = -1) there is no attention for VIP to read: the vision tower's own ranks tokens there.
    """
    scale = bench.scale
    settings = bench.settings(visual_tokens=[*scale.lengths], retention=[*scale.retention])
    early = replace(settings, after_layers=[k for k in scale.layers if k < 0], scorer="VisionRank", scorer_args={})
    late = replace(settings, after_layers=[k for k in scale.layers if k >= 0])
    models = [*variants(late, bench.backbone), *variants(early, bench.backbone)[2:]]
    groups = [*sweep(settings, models, bench.say)]
    note = f"All figures are at the end. K = -1: VisionRank; else {scale.base.scorer}."
    return {"groups": groups, "goals": savings(groups), "note": note}


# -- d. decoding ------------------------------------------------------------------------------------------------------


class Repeats(TorchDispatchMode):
    """Looks for keys or values repeated for every query head: an output of ``[B, heads, tokens, width]``."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        whole = isinstance(out, Tensor) and out.ndim == 4 and out.shape[1] == self.heads and out.shape[2] >= self.tokens
        if whole and out.is_contiguous():  # a view by `expand` is not
            self.found.add(str(func.overloadpacket))
        return out


@torch.no_grad()
def decoding(bench: Bench) -> dict[str, Any]:
    """Seconds a token at large batches, with all visual tokens and with a few, against the bytes that are read.

    The same prompt stands in every row of a batch: prefilled once, its cache repeated.
    """
    scale, backbone, rows, goals = bench.scale, bench.backbone, [], []
    layer = min(2, backbone.facts.num_layers - 2)
    models = {
        "full": PrunedVLM(backbone),
        "pruned": bench.pruned(layer, bench.scorer(), KeepRatio(scale.decode_share)),
    }
    inputs, new = bench.inputs(scale.decode_tokens), 12
    outputs = {name: model.prefill(**inputs) for name, model in models.items()}
    length, visual = outputs["full"].attention_mask.shape[1], len(outputs["full"].tokens.item)
    plain = Variant("full", backbone, models["full"])
    repeats = Repeats(backbone.facts.num_heads, length)
    with repeats:
        models["full"].generate(prefill=outputs["full"].fork(2), max_new_tokens=2, min_new_tokens=2)
    for batch in scale.decode_batches:
        runs = {name: partial(_decode, bench, model, outputs[name], batch, new) for name, model in models.items()}
        try:
            found = bench.rounds(runs, max(2, scale.rounds // 3))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append({"batch": batch, "note": "out of memory"})
            continue
        cases = [case_of(plain, batch, visual, length - visual, [])]
        kept = int(outputs["pruned"].keep[0].sum())
        cases.append(case_of(plain, batch, visual, length - visual, [StageTokens(layer, kept, "prune")]))
        each = [case.decode_bytes(decoder_bytes(plain), new / 2) for case in cases]
        ratio, theory = versus(found["pruned"]["tpot"], found["full"]["tpot"]), each[1] / each[0]
        rows.append(
            {
                "batch": batch, "visual tokens": visual, "kept": kept,
                "full (s/token)": median(found["full"]["tpot"]), "pruned (s/token)": median(found["pruned"]["tpot"]),
                "pruned / full": ratio, "ratio of bytes": theory, "GB read a token": each[0] / 1e9,
                "TB/s, full": each[0] / median(found["full"]["tpot"]) / 1e12,
            }
        )  # fmt: skip
        met = ratio["value"] <= 1.1 * theory
        goals.append([f"decoding, batch {batch}: within 10 % of the bytes' ratio {theory:.3f}", ratio, met])
    how = f"by {', '.join(sorted(repeats.found))}" if repeats.found else ""
    note = (
        f"Keys and values repeated for every query head are {'' if how else 'not '}written out {how}while decoding "
        "unpruned (Hugging Face's kernel). The growing cache is copied in each step, by `cat`; bytes count it once."
    )
    return {"rows": rows, "goals": goals, "note": note}


def _decode(bench: Bench, model: PrunedVLM, out: Any, batch: int, new: int) -> dict[str, float]:
    tokens = TokenClock(bench.clock)
    fork = out.fork(batch)
    bench.clock.synchronise()
    length = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    model.generate(prefill=fork, **length, logits_processor=LogitsProcessorList([tokens]))
    bench.clock.synchronise()
    return {"tpot": bench.clock.seconds(tokens.stamps[0], tokens.stamps[-1]) / (new - 1)}


# -- e. scorers -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def scoring(bench: Bench) -> dict[str, Any]:
    """Seconds of every scorer, and how often a prefill makes the host wait for the device."""
    backbone, scale = bench.backbone, bench.scale
    inputs, rows = bench.inputs(scale.tokens), []
    layer = min(2, backbone.facts.num_layers - 2)
    kinds = [getattr(scorers, name) for name in scorers.__all__]
    plain = bench.rounds({HF: partial(bench.prefill, Variant(HF, backbone), inputs)}, scale.rounds)[HF]["prefill"]
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, scorers.Scorer)) or kind is scorers.Scorer:
            continue
        bench.say(f"  {kind.__name__}")
        try:
            scorer = bench.scorer() if kind.__name__ == scale.base.scorer else kind()
            model = bench.pruned(layer, scorer, KeepRatio(scale.decode_share))
            variant = Variant(kind.__name__, backbone, _Boxed(model) if kind is scorers.Oracle else model)
            found = bench.rounds({HF: partial(bench.prefill, variant, inputs)}, max(2, scale.rounds // 2))[HF]
            waits, where = host_waits(partial(variant.prefill, inputs, ["what is it?"]), backbone.model.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append({"scorer": kind.__name__, "note": "out of memory"})
            continue
        except Exception as error:
            rows.append({"scorer": kind.__name__, "note": f"{type(error).__name__}: {error}".splitlines()[0][:160]})
            continue
        seconds = median(found[SCORING])
        rows.append(
            {
                "scorer": kind.__name__, "scoring (s)": seconds, "of an unpruned prefill": seconds / median(plain),
                "prefill / HF": median(found["prefill"]) / median(plain), "host waits": waits, "at": where,
            }
        )  # fmt: skip
    waits, where = host_waits(partial(Variant(HF, backbone).prefill, inputs, [""]), backbone.model.device)
    rows.append({"scorer": "Hugging Face's own forward", "host waits": waits, "at": where})
    note = f"{scale.tokens} visual tokens, behind layer {layer}; scoring includes selection and compaction."
    return {"rows": rows, "note": note}


class _Boxed(PrunedVLM):
    """A model that is given an evidence box in the upper left quarter of the image."""

    def __init__(self, model: PrunedVLM) -> None:
        super().__init__(model.backbone, model.pruner)

    def prefill(self, **inputs: Any) -> Any:
        boxes = [[[(0.0, 0.0, 0.5, 0.5)]] for _ in inputs["input_ids"]]
        return super().prefill(boxes=boxes, **inputs)


def host_waits(run: Callable[[], Any], device: torch.device) -> tuple[int | None, str]:
    """How often the host waits for a CUDA device, and from which lines; ``None`` elsewhere."""
    if device.type != "cuda":
        run()
        return None, ""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message))
    return lines.total(), ", ".join(f"{line} x {count}" for line, count in lines.most_common(6))


# -- f. training ------------------------------------------------------------------------------------------------------


def training(bench: Bench) -> dict[str, Any]:
    """One step of each objective, forward and backward, without the optimizer's."""
    backbone, scale, rows, goals = bench.backbone, bench.scale, [], []
    weights = sum(weight.nbytes for weight in backbone.model.parameters())
    layer = min(scale.article[2], backbone.facts.num_layers - 3)
    batch = training_batch(backbone, bench.inputs(scale.tokens), 16)
    for name in (KL, MASK, "grpo"):
        bench.say(f"  {name}")
        pruner = Pruner([PruneStage(layer, bench.scorer(), Threshold())])
        model = PrunedVLM(backbone, pruner)
        pruner.to(backbone.model.dtype).train()
        try:
            step = _rl_step(model, batch) if name == "grpo" else Pass(model, objective_of(name), batch)
            seconds = bench.rounds({name: partial(_timed, bench.clock, step)}, max(2, scale.rounds // 3))[name]["step"]
            peak = peak_bytes(step, backbone.model.device)
        except torch.OutOfMemoryError:
            rows.append({"step": name, "note": "out of memory"})
            torch.cuda.empty_cache()
            continue
        rows.append(
            {"step": name, "visual tokens": scale.tokens, "K": layer, "step (s)": median(seconds),
             "peak above the weights (GiB)": peak / GIB, "with the weights (GiB)": (peak + weights) / GIB}
        )  # fmt: skip
        if name == KL:
            total = (peak + weights) / GIB
            goals.append([f"a KL step at {scale.tokens} tokens within 40 GB, weights included", total * GIB / 1e9,
                          total * GIB <= 40e9])  # fmt: skip
    note = "One prompt, 16 answer tokens; GRPO: four answers of up to 16 tokens to it, LoRA of rank 32."
    return {"rows": rows, "goals": goals, "note": note}


def _timed(clock: Clock, step: Callable[[], Any]) -> dict[str, float]:
    clock.synchronise()
    begin = clock.stamp()
    step()
    end = clock.stamp()
    clock.synchronise()
    return {"step": clock.seconds(begin, end)}


def _rl_step(model: PrunedVLM, batch: Any) -> Callable[[], Any]:
    """Rollouts, reference, loss and gradients of adapters in the language model."""
    objective = GRPO(
        rewards={"length": {"weight": 1.0, "free": 1, "longest": 16}}, lora=LoRA(r=32), group_size=4, max_new_tokens=16
    )
    objective.prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in objective.trainable))
    objective.remember(model)
    objective.start(model)

    def step() -> None:
        objective.step(model, batch).loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


PARTS: dict[str, tuple[Callable[[Bench], dict[str, Any]], int]] = {
    "article": (article, 75), "equality": (equality, 60), "prefill": (prefill, 120), "decoding": (decoding, 60),
    "scoring": (scoring, 60), "training": (training, 75),
}  # fmt: skip
"""Parts by name, and the seconds after which each is given up; the first one's include loading."""


def record(bench: Bench, command: str, commit: str | None) -> dict[str, Any]:
    """What the record says of machine, model and settings, in the form of ``bench``'s."""
    model, scale = bench.backbone.model, bench.scale
    cuda = model.device.type == "cuda"
    about = machine.describe(model.device)
    return {
        "format": 1,
        "command": command,
        "machine": {**about, "commit": commit or about["commit"], **({"driver": _driver()} if cuda else {})},
        "model": {
            "name": scale.base.model, "weights": "random" if scale.base.model.startswith("random:") else "trained",
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."), "attention": scale.base.attn_implementation,
        },
        "clock": "CUDA events" if cuda else "wall time of the CPU",
        "memory": CUDA_WAY if cuda else CPU_WAY,
        "settings": asdict(bench.settings()),
        "groups": [],
        "parts": {},
    }  # fmt: skip


def _driver() -> str:
    """Driver, and the clocks now and at most."""
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    try:
        return subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
