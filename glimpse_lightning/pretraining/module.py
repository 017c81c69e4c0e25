"""Pretraining of an embedded backbone from random weights: vision tower and decoder first learn apart.

1. ``vision``: each merged visual token learns to show the words it stands for, as they look in visual tokens.
2. ``ideal``: the decoder alone learns to answer on ideal visual tokens (sums of words' looks, and noise).
3. ``joint``: both together on drawn pages, first small, then of full size.

Plain question answering from the start stays on a plateau for far longer than this whole curriculum takes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from glimpse_lightning.backbones.embedded import TINY, source_of
from glimpse_lightning.pretraining.architectures import architecture_of
from glimpse_lightning.pretraining.glyph_pages import GlyphPages
from glimpse_lightning.pretraining.losses import ideal_features, packed_answer_loss, vision_loss, visual_features
from glimpse_lightning.pretraining.packing import PackedBatch
from glimpse_lightning.pretraining.pages import Pages
from glimpse_lightning.pretraining.start import new_model
from glimpse_lightning.runtime.whole_files import replacing

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_backbone(model: PreTrainedModel, weights: dict[str, Tensor], source: str | Path, folder: str | Path) -> None:
    """Write ``weights`` in bf16, with the model's configuration and ``source``'s other files, as a Hugging Face folder.

    The folder is complete at every moment: the weights are replaced in one step, after everything else.
    """
    folder, source = Path(folder), Path(source)
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != CONFIG and source.resolve() != folder.resolve():
            shutil.copyfile(file, folder / file.name)
    halves = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    with TemporaryDirectory(dir=folder.parent, prefix=".") as scratch, replacing(folder / WEIGHTS) as draft:
        model.save_pretrained(scratch, state_dict=halves)
        config = json.loads((Path(scratch) / CONFIG).read_text(encoding="utf-8"))
        text = json.dumps({**config, "dtype": "bfloat16"}, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        os.chmod(Path(scratch) / WEIGHTS, 0o644)
        os.replace(Path(scratch) / WEIGHTS, draft)


class PretrainModule(lightning.LightningModule):
    """Trains a model on the batches of `PretrainData`, each of which carries the settings of its stage.

    Args:
        folder: folder with ``config.json`` and the tokenizer files, or an embedded backbone; its weights are not read.
        text: changes of the configuration's ``text_config``.
        pages: source of the pages, as in the data; its words begin with embeddings of their own. Default: GlyphVQA's.
        apart: whether words look otherwise in visual tokens than their embeddings; see `new_model`.
        export: folder that receives the model at the end of the fit; ``None``: only checkpoints are written.
        weight_decay: weight decay of AdamW, on matrices.
        ema: decay of the averaged weights that are validated and exported.
        log_file: JSONL file that receives the training log.
        log_every: steps between lines of the log.
        seed: seed of the random weights.

    Attributes:
        ended: steps that were done when a stage had reached its goals, by the stage's number.
    """

    looks: Tensor

    def __init__(
        self,
        folder: str = TINY,
        text: dict[str, Any] | None = None,
        pages: Pages = GlyphPages(),
        apart: bool = False,
        export: str | None = None,
        weight_decay: float = 0.02,
        ema: float = 0.998,
        log_file: str | None = None,
        log_every: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.export, self.weight_decay, self.ema = source_of(folder), export, weight_decay, ema
        self.log_file, self.log_every = log_file, log_every
        self.families = pages.families
        self.model, looks = new_model(self.folder, pages.words, apart, text or {}, seed)
        self.architecture = architecture_of(self.model.config.model_type)
        self.register_buffer("looks", looks)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.ended: dict[int, int] = {}
        self._part = self._stage = ""
        self._seen: dict[str, list[float]] = {}

    def _select_trained(self, part: str) -> None:
        """Vision and ideal stages share the token embeddings, so those stay fixed until both are done."""
        if part == self._part:
            return
        self._part = part
        for name, parameter in self.model.named_parameters():
            language = name.startswith(("model.language_model.", "lm_head."))
            embedding = name.startswith("model.language_model.embed_tokens")
            visual, decoder = not language, language and not embedding
            on = {"vision": visual, "ideal": decoder, "decoder": decoder, "joint": True}[part]
            parameter.requires_grad_(on)
            parameter.grad = None

    def losses(self, batch: PackedBatch) -> tuple[Tensor, dict[str, list[float]]]:
        """The loss of the batch's stage, and figures to average: name -> values."""
        settings = batch.settings
        figures: dict[str, list[float]] = {}
        words_VW = batch.visual_words.flatten(0, 1)
        kind, weight = settings["kind"], settings.get("vision_weight", 0.0)
        loss = torch.zeros(())
        if kind == "ideal":
            features = ideal_features(self.looks, words_VW, self.global_step)
        else:
            features = visual_features(self.model, batch)
        if kind == "vision" or weight > 0:
            seen, logs = vision_loss(self.looks, features, words_VW)
            loss = loss + seen * (1.0 if kind == "vision" else weight)
            figures |= {name: [value.item()] for name, value in logs.items()}
            figures["vision_loss"] = [seen.item()]
        if kind != "vision":
            answers, exact = packed_answer_loss(self.model, features, batch)
            loss = loss + answers
            figures["answer_loss"] = [answers.item()]
            for family, right in zip(batch.families, exact.tolist(), strict=True):
                figures.setdefault(family, []).append(float(right))
        return loss, figures

    @override
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        self._select_trained(batch.settings["part"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = batch.settings["lr"]
        loss, figures = self.losses(batch)
        if batch.settings["name"] != self._stage:
            self._stage, self._seen = batch.settings["name"], {}
        for name, values in figures.items():
            self._seen.setdefault(name, []).extend(values)
        if (self.global_step + 1) % self.log_every == 0:
            self._end_if_reached(batch.settings, self._write(self._stage, self._seen, batch.settings["lr"]))
            self._seen = {}
        return loss

    def _end_if_reached(self, settings: dict[str, Any], means: dict[str, float]) -> None:
        """End a stage that has reached its goals, on all ranks by the figures of the first."""
        goals = settings["until"]
        short = {family: goal for family, goal in goals.items() if means.get(family, 0.0) < goal}
        short = self.trainer.strategy.broadcast(short)
        if goals and not short:
            self.ended[settings["number"]] = self.global_step + 1
        elif short and settings["left"] < self.log_every:
            missed = ", ".join(f"{family} {means.get(family, 0.0):.0%} of {goal:.0%}" for family, goal in short.items())
            rank_zero_warn(
                f"Stage {settings['name']!r} ends short of its goals ({missed}). Later ones build on them: give it "
                "more `steps`, or another `seed`."
            )

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here, as checkpoints are saved before `on_train_batch_end`: a resumed run would miss an average.
        done = self.global_step + 1
        decay = min(self.ema, (1 + done) / (10 + done))  # short at first, to forget the random initial weights
        with torch.no_grad():
            now = self.model.state_dict()
            torch._foreach_lerp_([self.average[name] for name in now], list(now.values()), 1 - decay)

    @override
    def on_validation_start(self) -> None:
        self._swap_average()
        self._checked: dict[str, list[float]] = {}

    @override
    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        _, figures = self.losses(batch)
        for name, values in figures.items():
            self._checked.setdefault(name, []).extend(values)

    @override
    def on_validation_end(self) -> None:
        self._swap_average()
        if not self.trainer.sanity_checking:
            self._write("validation", self._checked, 0.0)

    @override
    def on_train_end(self) -> None:
        if self.export and self.trainer.is_global_zero:
            save_backbone(self.model, self.average, self.folder, self.export)

    def _swap_average(self) -> None:
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                kept = value.clone()
                value.copy_(self.average[name])
                self.average[name].copy_(kept)

    def _write(self, stage: str, seen: dict[str, list[float]], lr: float) -> dict[str, float]:
        means = {name: round(sum(values) / len(values), 4) for name, values in seen.items()}
        known = [means[family] for family in self.families if family in means]
        line = {"step": self.global_step, "stage": stage, "lr": lr, **means}
        if known:
            line["accuracy"] = round(sum(known) / len(known), 4)
        if self.log_file and self.trainer.is_global_zero:
            Path(self.log_file).parent.mkdir(parents=True, exist_ok=True)
            with open(self.log_file, "a") as file:
                file.write(json.dumps(line) + "\n")
        return means

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [p for name, p in self.model.named_parameters() if p.ndim > 1 and "embed_tokens" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim < 2 or "embed_tokens" in name]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"], checkpoint["ended"] = self.average, self.ended

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["average"]
        self.ended = dict(checkpoint.get("ended", {}))  # missing in those of 0.2
