"""The mask objective on a stand-in for the model; test_golden_model.py has the whole step against the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens
from PIL import Image

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.engine.distillation import StageOutput
from glimpse_lightning.objectives.losses import answer_loss, mask_loss
from glimpse_lightning.objectives.mask import Mask
from glimpse_lightning.policies import Threshold
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.scorers import VIP

BOX: Box = (0.0, 0.0, 0.4, 0.4)


def model_of(grids: list[Any], **kwargs: Any) -> tuple[Any, VIP]:
    """Something with the parts of PrunedVLM that the objective uses, over synthetic tokens."""
    torch.manual_seed(0)
    vip = VIP(attention_dim=32, condition_dim=48, **kwargs)
    pruner = Pruner([PruneStage(3, vip, Threshold())])
    pruner.build(FACTS)
    tokens = visual_tokens(grids, vip.requires)
    logits = torch.randn(len(grids), 2, 11)

    def glimpse_forward(batch: Batch, answers: bool = False) -> list[StageOutput]:
        return [StageOutput(vip(tokens), tokens, logits if answers else None)]

    return SimpleNamespace(pruner=pruner, glimpse_forward=glimpse_forward, logits=logits), vip


def batch_of(boxes: list[list[list[Box]] | None], weight: list[float]) -> Batch:
    size = len(boxes)
    samples = [Sample(str(i), i, "?", ["x"], [Image.new("RGB", (8, 8))], boxes[i]) for i in range(size)]
    ids = torch.arange(2 * size).view(size, 2)
    return Batch({}, ids, torch.ones_like(ids), torch.arange(size), torch.tensor(weight), samples)


def test_loss_and_logs() -> None:
    model, vip = model_of([[(1, 3, 3)], [(1, 2, 5)]])
    batch = batch_of([[[BOX]], [[BOX]]], [1.0, 1.0])
    result = Mask(answer_weight=0.5).step(model, batch)
    (output,) = model.glimpse_forward(batch)
    target = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0, 0, *[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]])
    mask = mask_loss(output.scores, target, output.tokens.sample, 2, 1.0, 0.1)
    answer = answer_loss(model.logits, batch.answer_ids, batch.answer_mask)
    torch.testing.assert_close(result.loss, mask + 0.5 * answer)
    torch.testing.assert_close(result.logs["mask"], mask.detach())
    torch.testing.assert_close(result.logs["answer"], answer)
    assert result.logs["evidence"] == pytest.approx(7 / 19)
    result.loss.backward()
    assert all(parameter.grad is not None for parameter in vip.network.parameters())


def test_samples_without_boxes_or_weight_do_not_count() -> None:
    model, _ = model_of([[(1, 3, 3)], [(1, 2, 5)], [(1, 2, 2)]])
    with_others = Mask(answer_weight=0).step(model, batch_of([[[BOX]], None, [[BOX]]], [1.0, 1.0, 0.0]))
    alone, _ = model_of([[(1, 3, 3)]])
    only = Mask(answer_weight=0).step(alone, batch_of([[[BOX]]], [1.0]))
    torch.testing.assert_close(with_others.loss, only.loss)
    assert "answer" not in only.logs


def test_deep_supervision_sums_over_heads() -> None:
    model, vip = model_of([[(1, 3, 3)]], upstream={"deep_supervision": True}, vision_layers=[3, 1])
    batch = batch_of([[[BOX]]], [1.0])
    loss = Mask(answer_weight=0).step(model, batch).loss
    (output,) = model.glimpse_forward(batch)
    target = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0, 0])
    rows = vip.forward_rows(output.tokens)
    torch.testing.assert_close(loss, sum(mask_loss(row, target, output.tokens.sample, 1) for row in rows))


def test_a_batch_without_boxes_adds_nothing() -> None:
    model, vip = model_of([[(1, 3, 3)]])
    loss = Mask(answer_weight=0).step(model, batch_of([None], [1.0])).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == 0
    assert all(not parameter.grad.any() for parameter in vip.parameters() if parameter.grad is not None)


def test_negative_weight() -> None:
    with pytest.raises(ValueError, match="`bce_weight` to be at least 0, but got -1"):
        Mask(bce_weight=-1)
