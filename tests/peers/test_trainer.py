"""Hugging Face's Trainer on a pruned model, with the real package (`nox -s peers`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

import glimpse_lightning as gl
from glimpse_lightning.data.sample import Sample

pytest.importorskip("accelerate", reason="Trainer needs accelerate: nox -s peers")
pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> gl.PrunedVLM:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.2))
    return gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    data = gl.GlyphVQA("train", 8, image_size=224)
    return [data[index] for index in range(8)]


class Collator:
    """As a user's own: prompt and answer in one row, labels on the answer alone."""

    def __init__(self, model: gl.PrunedVLM) -> None:
        self.backbone = model.backbone

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        batch = self.backbone.collate(samples)
        inputs, mask = dict(batch.inputs), batch.answer_mask
        prompt = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([prompt, batch.answer_ids], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
        labels = batch.answer_ids.masked_fill(mask == 0, -100)
        return inputs | {"labels": torch.cat([torch.full_like(prompt, -100), labels], 1)}


def trainer(model: gl.PrunedVLM, samples: list[Sample], folder: Path, size: int = 4, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=size, per_device_eval_batch_size=4, learning_rate=1e-3,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], remove_unused_columns=False, use_cpu=True,
        save_strategy="no", disable_tqdm=True, seed=0, **options,
    )  # fmt: skip
    return Trainer(model, arguments, Collator(model), samples, samples)  # type: ignore[arg-type]


def logged(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_it_trains_the_language_model_behind_the_pruned_prompt(
    model: gl.PrunedVLM, samples: list[Sample], tmp_path: Path
) -> None:
    """Evaluation before and after is that of the model's own loss; training lowers it."""
    first = trainer(model, samples, tmp_path, max_steps=6)
    with torch.no_grad():
        wanted = [float(model(**Collator(model)(samples[i : i + 4])).loss) for i in (0, 4)]
    before = first.evaluate()["eval_loss"]
    assert before == pytest.approx(sum(wanted) / 2, rel=1e-4)
    first.train()
    assert first.evaluate()["eval_loss"] < 0.5 * before


def test_accumulated_gradients_are_those_of_one_batch(samples: list[Sample], tmp_path: Path) -> None:
    """Trainer divides by the number of labels of all batches, which `forward` heeds."""
    losses = []
    for size, times in ((8, 1), (2, 4)):
        stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.2))
        model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        one = trainer(model, samples, tmp_path, size, gradient_accumulation_steps=times, max_steps=3)
        one.train()
        losses.append(logged(one))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_it_saves_loads_again(model: gl.PrunedVLM, samples: list[Sample], tmp_path: Path) -> None:
    """The trained weights, which Trainer writes of any module that is no PreTrainedModel."""
    one = trainer(model, samples, tmp_path, max_steps=1)
    one.train()
    one.save_model(str(tmp_path / "saved"))
    other = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), model.pruner)
    other.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    inputs = Collator(model)(samples[:2])
    torch.testing.assert_close(other(**inputs).loss, model.eval()(**inputs).loss)
