"""Requests in several threads over one backbone do not see each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning import scorers as s
from glimpse_lightning.engine.in_use import while_in_use

VIP = {"attention_dim": 16, "condition_dim": 16, "heads": 2}
THREADS, REQUESTS = 4, 8


def scorer_of(name: str) -> s.Scorer:
    kind = getattr(s, name)
    torch.manual_seed(0)
    return kind(**VIP, vision_layers=[1, 0], attention_layers="all") if kind is s.VIP else kind()


KINDS = [getattr(s, name) for name in s.__all__ if name != "Scorer"]
NAMES = [kind.__name__ for kind in KINDS if isinstance(kind, type) and issubclass(kind, s.Scorer)]


def model_of(backbone: Any, name: str) -> gl.PrunedVLM:
    layer = -1 if name in ("VisionRank", "VisionSelector", "Holistic", "QuestionRelevance") else 2
    return gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(layer, scorer_of(name), p.KeepRatio(0.4))]))


def together(requests: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(request) for request in requests]]


def request(model: gl.PrunedVLM, index: int) -> tuple[list[bool], list[list[int]]]:
    sizes = [[(3 + index % 3, 4), (2, 2 + index % 2)]]
    inputs = model.backbone.example_inputs(sizes, first_sample=index)
    boxes = [[[(0.0, 0.0, 0.5, 0.5)]] * 2]
    out = model.prefill(boxes=boxes, questions=["what is it?"], **inputs)
    return out.kept().tolist(), model.generate(prefill=out, max_new_tokens=3, min_new_tokens=3).tolist()


def state(backbone: Any) -> list[Any]:
    """What hangs on each module, and which attention it uses."""
    kernels = [module.config._attn_implementation for module in backbone.model.modules() if hasattr(module, "config")]
    return [len(module._forward_hooks) for module in backbone.model.modules()] + kernels


# Every scorer; and under each kernel of each family, the one whose state is in the most places.
PLACES = [(family, attention) for family in ("qwen2_5_vl", "llava", "internvl") for attention in ("sdpa", "eager")]
RUNS = [(name, *PLACES[0]) for name in NAMES] + [("VIP", *place) for place in PLACES[1:]]
RUNS += [("VisionRank", *place) for place in PLACES[1:]]  # of the vision tower's attention


@pytest.mark.parametrize(("name", "family", "attention"), RUNS)
def test_threads_keep_and_answer_what_one_does(name: str, family: str, attention: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family](attention))
    model = model_of(backbone, name)
    alone = [request(model, index) for index in range(REQUESTS)]
    before = state(backbone)
    assert together([lambda i=index: request(model, i) for index in range(REQUESTS)]) == alone
    assert state(backbone) == before, "something was left behind"


def test_two_pruners_over_one_backbone() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    models = [model_of(backbone, "VIP"), model_of(backbone, "VisionRank"), gl.PrunedVLM(backbone)]
    batches = [backbone.collate([gl.GlyphVQA("test", image_size=224)[i]]).inputs for i in range(6)]

    def ask(model: gl.PrunedVLM, index: int) -> Any:
        out = model.prefill(**batches[index])
        return out.kept().tolist(), model.generate(prefill=out, max_new_tokens=4).tolist()

    jobs = [(model, index) for index in range(6) for model in models]
    alone = [ask(*job) for job in jobs]
    assert together([lambda j=job: ask(*j) for job in jobs]) == alone


def test_checkpointing_rests_while_any_thread_needs_it_to() -> None:
    """A layer that checkpoints drops its cache, so it must not come back on in the middle of another thread's call."""
    model = FAMILIES["llava"]().train()
    model.gradient_checkpointing_enable()
    backbone = gl.wrap_backbone(model)
    pruned = model_of(backbone, "AttentionRank")
    alone = [request(pruned, index) for index in range(REQUESTS)]
    assert together([lambda i=index: request(pruned, i) for index in range(REQUESTS)]) == alone
    assert all(layer.gradient_checkpointing for layer in backbone.layers)


def test_a_change_holds_until_the_last_user_leaves() -> None:
    log: list[str] = []

    def change() -> Callable[[], None]:
        log.append("made")
        return lambda: log.append("undone")

    outer, inner = while_in_use("key", change), while_in_use("key", change)
    with outer:
        with inner:
            pass
        assert log == ["made"]
    assert log == ["made", "undone"]
    with pytest.raises(KeyError):
        with while_in_use("key", change):
            raise KeyError
    assert log == ["made", "undone"] * 2


@pytest.mark.slow
def test_threads_cost_no_throughput() -> None:
    """Nothing is locked across a forward: four threads answer at 0.9 of one thread's pace, or faster."""
    backbone = gl.load_backbone("glimpse-tiny")
    model = model_of(backbone, "VIP")
    batches = [backbone.collate([gl.GlyphVQA("test", image_size=448)[i]]).inputs for i in range(24)]
    jobs = [lambda b=batch: model.generate(**b, max_new_tokens=8) for batch in batches]
    ratios = []
    for _ in range(3):
        begin = time.perf_counter()
        for job in jobs:
            job()
        middle = time.perf_counter()
        together(jobs)
        ratios.append((middle - begin) / (time.perf_counter() - middle))
    assert max(ratios) >= 0.9, ratios
