"""The counts of ``benchmarks/scale.py`` against steps of a small model, on two ranks and in one process."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from halves import attends_in_bfloat16
from lightning.pytorch import Callback
from ranks import WORLD, on_two_ranks
from sharded_runs import REWARDS, data, decided, trainer
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.evaluation.vlm_module import GATHERED
from glimpse_lightning.latency.flops import count_step
from glimpse_lightning.objectives import GRPO
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.training.module import RECOMPUTES_SHARDED, OptimizerOptions, PruningModule
from glimpse_lightning.training.strategies import FSDP2

ROOT = Path(__file__).parents[2]
LAYER, ANSWER, GROUP = 4, 5, 4


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("scale")


@pytest.fixture
def count(scale: Any) -> Any:
    return importlib.import_module("scale_count")


def untied() -> Backbone:
    """glimpse-tiny's shapes with a head of its own, as Qwen2.5-VL has from 7B on."""
    torch.manual_seed(0)
    tiny = gl.load_backbone("glimpse-tiny")
    config = tiny.model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    return gl.wrap_backbone(model, tiny.processor)


def parts(kind: str) -> tuple[Objective, Any, Any]:
    """Objective, scorer and policy of a kind of step."""
    if kind == "KL":
        vip = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
        return gl.objectives.KL(temperature=4.0), vip, gl.policies.Threshold()
    objective = GRPO(
        rewards=REWARDS, group_size=GROUP, max_new_tokens=ANSWER, rollout_masks="oracle", old="replay", clip=None,
        forward="embeddings", lora=LoRA(r=4, dropout=0.05) if kind == "GRPO, LoRA" else None,
    )  # fmt: skip
    return objective, gl.scorers.Oracle(), gl.policies.Threshold(scale="raw", threshold=0.0, min_tokens=1)


class Moved(TorchDispatchMode):
    """Bytes that this rank receives from the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.scattered = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        if name == "c10d::_allgather_base_":
            self.gathered += (WORLD - 1) * args[1].nbytes
        elif name == "c10d::_reduce_scatter_base_":
            self.scattered += (WORLD - 1) * args[0].nbytes
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Traffic of each step, and what the rank holds after the last one."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, int]] = []
        self.answers: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = Moved()
        self.mode.__enter__()

    def on_train_batch_end(self, runner: Any, module: Any, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.moved.append((self.mode.gathered, self.mode.scattered))
        parameters = list(module.vlm.parameters())
        states = [value for state in runner.optimizers[0].state.values() for value in state.values()]
        self.held = {
            "parameters": stored(parameters),
            "gradients": stored([p.grad for p in parameters if p.grad is not None]),
            "moments": stored(states),
        }


def stored(tensors: list[torch.Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    local = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in local}.values())


def _step(root: Path, kind: str, precision: str) -> dict[str, Any]:
    watch, (objective, scorer, policy) = Watch(), parts(kind)
    module = PruningModule(
        untied(), after_layer=LAYER, scorer=scorer, policy=policy, objective=objective, fit_baselines=[],
        optimizer=OptimizerOptions(lr=1e-4), activation_checkpointing=kind != "KL",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", decided)
        runner = trainer(
            root, [watch], devices=WORLD, strategy=FSDP2(), precision=precision, limit_val_batches=0,
            val_check_interval=None,
        )  # fmt: skip
        runner.fit(module, datamodule=data(1))
    return {"moved": watch.moved, **watch.held}


CASES = [
    pytest.param("KL", "32-true", marks=pytest.mark.slow),
    pytest.param("KL", "bf16-mixed"),
    pytest.param("GRPO, LoRA", "bf16-mixed", marks=pytest.mark.slow),
    pytest.param("GRPO, all weights", "bf16-mixed"),
]


@attends_in_bfloat16
@pytest.mark.skipif(not RECOMPUTES_SHARDED, reason="torch of this version cannot recompute sharded layers")
@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_shares_and_traffic_of_two_ranks(kind: str, precision: str, count: Any, tmp_path: Path) -> None:
    objective, scorer, policy = parts(kind)
    model = gl.PrunedVLM(untied(), gl.Pruner([gl.PruneStage(LAYER, scorer, policy)]))
    objective.prepare(model)
    shares = count.shares(model, objective.trainable, GATHERED.get(precision), WORLD)
    job = count.Job(kind, LAYER, 256, 20, 28, ANSWER, GROUP, kind != "KL")
    ranks = on_two_ranks(_step, tmp_path, tmp_path, kind, precision)
    for rank in ranks:
        assert rank["moved"] == [(shares.gathered(job), shares.scattered(job))] * 2
        assert (rank["parameters"], rank["gradients"]) == (shares.parameters, shares.gradients)
    # Counted for the first rank; the last one's share of an odd number of rows is smaller, and AdamW does not pad it.
    assert ranks[0]["moments"] == shares.moments and 0 <= shares.moments - ranks[1]["moments"] < 2e-3 * shares.moments


ACTIVATIONS = [
    ("KL", False, "float32"), ("KL", False, "bfloat16"), ("KL", True, "bfloat16"), ("GRPO, LoRA", False, "float32"),
    ("GRPO, LoRA", True, "float32"), ("GRPO, all weights", False, "mixed"), ("GRPO, all weights", True, "mixed"),
]  # fmt: skip


class Step:
    """A step of one process; with ``mixed``, decoder layers are in bfloat16, as FSDP2 gathers them."""

    def __init__(self, count: Any, kind: str, recompute: bool, dtype: str) -> None:
        self.objective, self.scorer, policy = parts(kind)
        self.backbone, self.mixed = untied(), dtype == "mixed"
        self.backbone.model.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        self.model = gl.PrunedVLM(self.backbone, gl.Pruner([gl.PruneStage(LAYER, self.scorer, policy)]))
        self.objective.prepare(self.model)
        self.backbone.layers.to(torch.bfloat16 if self.mixed else self.backbone.model.dtype)
        count.with_graph(self.backbone, self.objective.trainable)
        self.objective.remember(self.model)
        self.objective.start(self.model)
        self.backbone.recompute = recompute
        self.batch = self.backbone.collate([gl.GlyphVQA("train", 1, image_size=224)[0]])
        self.grid = tuple(self.backbone.embed(self.batch.inputs).grid[0, 1:].tolist())
        self.kind, self.count = kind, count

    def __call__(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            result = self.objective.step(self.model, self.batch)
        visual, prompt = self.grid[0] * self.grid[1], self.batch.inputs["input_ids"].shape[1]
        kept = round(float(result.logs["hard_retention"]) * visual)
        answer = self.batch.answer_ids.shape[1] if self.kind == "KL" else ANSWER
        recompute = self.backbone.recompute
        self.job = self.count.Job(self.kind, LAYER, visual, prompt - visual, kept, answer, GROUP, recompute)
        return result.loss


@pytest.mark.parametrize(("kind", "recompute", "dtype"), ACTIVATIONS)
def test_activations_of_a_step(
    kind: str, recompute: bool, dtype: str, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes alive when the backward pass would begin."""
    monkeypatch.setattr(torch, "multinomial", decided)
    step = Step(count, kind, recompute, dtype)
    with count.Alive() as alive:
        loss = step()
    reference = [copy for _, copy in getattr(step.objective, "_reference", [])]
    found = alive.bytes(loss, *step.model.parameters(), *reference, *step.batch.inputs.values())

    backbone = step.backbone
    saved = count.scorer_kept(step.scorer, backbone.facts, LAYER, step.grid)[0] if kind == "KL" else 0
    backbone.model.to("meta")
    stream, low = (torch.float32, torch.bfloat16) if step.mixed else (backbone.model.dtype, None)
    assert count.activations(step.job, count.Streams(backbone, stream, low), saved) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("kind", ["KL", "GRPO, LoRA", "GRPO, all weights"])
def test_flops_of_a_step(kind: str, scale: Any, count: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "multinomial", decided)
    step = Step(count, kind, kind != "KL", "float32")
    vision = count_step(lambda: step.backbone.visuals(step.batch.inputs, step.model.vision_layers))
    assert scale.vision_flops(step.backbone, step.grid[0] * step.grid[1]) == pytest.approx(vision, rel=0.02)
    found = count_step(lambda: step().backward()) - vision
    facts, vocabulary = step.backbone.facts, step.backbone.text_config.vocab_size
    if kind == "KL":
        scorer = count_step(count.scorer_kept(step.scorer, facts, LAYER, step.grid)[1])
        expected = scale.kl_flops(step.job, facts, vocabulary) + scorer
    else:
        expected = scale.grpo_flops(step.job, facts, vocabulary) + scale.answer_flops(step.job, facts, vocabulary)
    assert expected == pytest.approx(found, rel=0.1)


def test_speeds_and_depths(scale: Any) -> None:
    hardware = scale.Hardware(1e15, 0.5, 2e12, 400e9, 40e9, 8, 80e9)
    assert (hardware.rate, hardware.receives(8), hardware.receives(16)) == (5e14, 400e9, 320e9)
    assert [scale.depth(18, layers) for layers in (28, 64, 80)] == [18, 42, 53]


def test_work_of_a_question(scale: Any) -> None:
    """Before layer 0, a pruner leaves the tower's work, and of prefill that of the tokens left."""
    backbone, question = untied(), scale.Question(64, 8, 5)
    whole, half = (scale.answering(backbone, question, layer, 0.5, 4) for layer in (None, -1))
    facts, head = backbone.facts, 2 * backbone.facts.hidden_size * backbone.text_config.vocab_size
    assert question.grid == (8, 8) and half.tower == whole.tower
    assert whole.prefill == facts.num_layers * facts.layer_flops(72) + head
    assert half.prefill == facts.num_layers * facts.layer_flops(40) + head
    keys = 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * 2
    assert whole.read - half.read == 4 * 32 * keys  # 4 steps read the keys and values of 32 tokens more


def test_the_page_quotes_the_record() -> None:
    record, page = ((ROOT / name).read_text() for name in ("benchmarks/scale.md", "docs/scale.md"))
    quoted = re.findall(r"^\| \d+B\b.*", page, re.MULTILINE)
    figures = [figure for row in quoted for figure in re.findall(r"\d+,\d{3}", row)]
    assert len(quoted) == 12 and len(figures) > 30
    assert not [figure for figure in figures if figure not in record]


@pytest.mark.slow
def test_the_record_is_that_of_the_script(scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MODELS", {"7B": scale.MODELS["7B"]})
    scale.main(["--output", str(tmp_path / "scale.md")])
    rows = [line for line in (ROOT / "benchmarks" / "scale.md").read_text().splitlines() if "| 32B" not in line]
    assert (tmp_path / "scale.md").read_text().splitlines() == [line for line in rows if "| 72B" not in line]
