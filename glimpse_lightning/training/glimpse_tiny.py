"""Pretraining of glimpse-tiny from random weights: a curriculum in which vision tower and decoder first learn apart.

1. ``vision``: each merged visual token learns to show, in the decoder's own token embeddings, the words it stands for.
2. ``oracle``: the decoder alone learns to answer on ideal visual tokens (sums of those embeddings, and noise).
3. ``joint``: both together on drawn images, first small, then of full size.

Plain question answering from the start stays on a plateau for far longer than this whole curriculum takes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Model
from typing_extensions import override

from glimpse_lightning.data.glyph_vqa.layout import FAMILIES
from glimpse_lightning.data.glyph_vqa.packing import VISUAL_WORD_IDS, PackedBatch, pack
from glimpse_lightning.runtime.whole_files import replacing

EMBEDDED = Path(__file__).parents[1] / "backbones" / "glimpse_tiny"
KINDS = ("vision", "oracle", "joint")
_SHARPNESS = 12.0  # logit = 12 (h . e - 1/2): a visual token that equals the sum of its words' embeddings scores +-6


@dataclass
class Stage:
    """One lesson of the curriculum.

    Attributes:
        name: name of the stage in logs.
        kind: ``vision``, ``oracle`` or ``joint``.
        steps: optimizer steps.
        images: images in a batch.
        questions: questions about each image, packed in one sequence.
        image_size: width and height in pixels, a multiple of 112.
        lr: peak learning rate, reached after ``warmup`` steps.
        final_lr: learning rate at the last step, approached along a cosine.
        warmup: steps of linear warm-up.
        suffix: share of prompts that end as in the chat template, at the first and at the last step.
        families: weights of the question families; by default all are equal.
        vision_weight: weight of the vision loss next to the answer loss in a ``joint`` stage.
        see: whether a ``joint`` stage trains the vision tower too.
        crowded: whether images hold more objects than those of the benchmark.
        hide: share of questions from which a random share of the visual tokens without evidence is hidden; see `pack`.
    """

    name: str
    kind: str
    steps: int
    images: int = 8
    questions: int = 12
    image_size: int = 448
    lr: float = 1e-3
    final_lr: float = 1e-4
    warmup: int = 50
    suffix: list[float] = field(default_factory=lambda: [1.0, 1.0])
    families: dict[str, float] | None = None
    vision_weight: float = 0.0
    see: bool = True
    crowded: bool = False
    hide: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Expected the kind of stage {self.name!r} to be one of {KINDS}, but got {self.kind!r}.")

    def settings(self, step: int) -> dict[str, Any]:
        """Settings of the training step at ``step`` of this stage."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        lr = warm * (self.final_lr + (self.lr - self.final_lr) * fall)
        part = "decoder" if self.kind == "joint" and not self.see else self.kind
        return {"name": self.name, "kind": self.kind, "part": part, "lr": lr, "vision_weight": self.vision_weight}

    def batch(self, rng: Random, step: int) -> PackedBatch:
        """A fresh batch for ``step`` of this stage."""
        share = self.suffix[0] + (self.suffix[1] - self.suffix[0]) * step / max(1, self.steps)
        drawn = self.kind != "oracle"
        questions = self.questions if self.kind != "vision" else 1
        batch = pack(rng, self.images, questions, self.image_size, share, self.families, drawn, self.crowded, self.hide)
        batch.settings = self.settings(step)
        return batch


def word_embeddings(model: Model) -> Tensor:
    """Embeddings of the words that a visual token can show, and of the image placeholder: [W + 1, D]."""
    return model.get_input_embeddings().weight[[*VISUAL_WORD_IDS, model.config.image_token_id]]


def visual_features(model: Model, batch: PackedBatch) -> Tensor:
    """Merged visual tokens of the batch: [B * N, D]."""
    return model.model.visual(batch.pixel_values, grid_thw=batch.image_grid_thw).pooler_output


def vision_loss(model: Model, features_VD: Tensor, words_VW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Every visual token shows its words and no others; all of them also show the image placeholder.

    The squared distance to the ideal token removes components that stand for no word. Without it visual tokens became
    ten times longer than ideal ones, and the decoder could not read them.

    Args:
        model: the model whose token embeddings are the classifier; they get no gradient here.
        features_VD: merged visual tokens.
        words_VW: int8 label of each word, 1 shown, 0 not shown, -1 not counted.
    """
    table = word_embeddings(model).detach().float()
    logits = _SHARPNESS * (features_VD.float() @ table.T - 0.5)
    goal = torch.cat([words_VW, torch.ones_like(words_VW[:, :1])], dim=1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, goal.clamp(min=0).float(), reduction="none")
    counted = goal >= 0
    loss = (loss * counted).sum() / len(goal)
    whole = counted.all(1)
    ideal = goal[whole].to(table.dtype) @ table
    distance = (features_VD[whole].float() - ideal).square().sum(1).mean()
    shows = (goal[:, :-1] == 1).any(1)
    right = ((logits > 0) == (goal == 1)).logical_or(~counted).all(1)
    logs = {"tokens_right": right[shows].float().mean(), "blank_right": right[~shows].float().mean()}
    return loss + distance, logs | {"distance": distance.detach()}


def oracle_features(model: Model, words_VW: Tensor, noise: float = 0.03) -> Tensor:
    """Ideal visual tokens [V, D]: the sum of the words' embeddings, of the placeholder's, and noise."""
    table = word_embeddings(model).detach()
    sliver = (words_VW < 0) & (torch.rand(words_VW.shape, device=words_VW.device) < 0.5)
    shown = (words_VW.clamp(min=0) + sliver).to(table.dtype)
    return shown @ table[:-1] + table[-1] + noise * torch.randn(len(shown), table.shape[1], device=table.device)


def packed_answer_loss(model: Model, features_VD: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the answers of all packed questions, and which questions were answered exactly.

    Returns:
        The loss, and bool [Q]: true where the token of the highest logit is right at every place, as in greedy
        decoding.
    """
    embeds = model.get_input_embeddings()(batch.input_ids)
    places = (batch.input_ids == model.config.image_token_id)[:, :, None]
    embeds = embeds.masked_scatter(places, features_VD.to(embeds.dtype))
    mask = batch.mask
    if model.config._attn_implementation == "eager":  # which adds the mask to its logits
        mask = torch.where(mask, 0.0, -1e4).to(torch.bfloat16)
    out = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
    )
    asked = batch.question >= 0
    logits, targets = model.lm_head(out.last_hidden_state[asked]).float(), batch.targets[asked]
    loss = nn.functional.cross_entropy(logits, targets)
    exact = torch.ones(len(batch.families), dtype=torch.bool, device=logits.device)
    exact[batch.question[asked][logits.argmax(-1) != targets]] = False
    return loss, exact


def new_model(folder: str | Path, seed: int = 0) -> Model:
    """A model with random weights from the ``config.json`` in ``folder``.

    Token embeddings have length one (the head starts as their copy). With Hugging Face's small initialisation, the
    first layer's normalisation would scale noise up to the size of a visual token's words. Attention starts out
    attending to tokens that resemble the query and copying from them ("mimetic initialization", arXiv 2305.09828),
    which finding a key needs.
    """
    torch.manual_seed(seed)
    # Eager attention trains 1.3 to 1.6 times faster than SDPA here: short sequences, heads of 32, bf16 on a CPU.
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = Model(config)
    table = model.get_input_embeddings().weight.data
    table.normal_(std=table.shape[1] ** -0.5)
    model.lm_head.weight.data.copy_(table)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        shape = (attention.num_heads, attention.num_key_value_groups, attention.head_dim, attention.hidden_size)
        per_head = [
            projection.weight.data.view(-1, shape[2], shape[3]).repeat_interleave(shape[1], 0).flatten(0, 1)
            for projection in (attention.k_proj, attention.v_proj)
        ]
        attention.q_proj.weight.data.copy_(per_head[0])
        attention.o_proj.weight.data.copy_(per_head[1].T)
    return model


def save_backbone(model: Model, weights: dict[str, Tensor], source: str | Path, folder: str | Path) -> None:
    """Write ``weights`` in bf16, with the configuration and tokenizer files of ``source``, as a Hugging Face folder.

    The folder is complete at every moment: the weights are replaced in one step, after everything else.
    """
    folder, source = Path(folder), Path(source)
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and source.resolve() != folder.resolve():
            shutil.copyfile(file, folder / file.name)
    halves = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    with TemporaryDirectory(dir=folder.parent, prefix=".") as scratch, replacing(folder / "model.safetensors") as draft:
        model.save_pretrained(scratch, state_dict=halves)
        os.chmod(Path(scratch) / "model.safetensors", 0o644)
        os.replace(Path(scratch) / "model.safetensors", draft)


class PretrainModule(lightning.LightningModule):
    """Trains glimpse-tiny on the batches of `PretrainData`, each of which carries the settings of its stage.

    Args:
        folder: folder with ``config.json`` and the tokenizer files; its weights are not read. Default: glimpse-tiny's.
        init: folder of a model to start from; default: random weights.
        export: folder that receives the trained model; ``None``: only checkpoints are written.
        weight_decay: weight decay of AdamW, on matrices.
        ema: decay of the averaged weights that are validated and exported.
        log_file: JSONL file that receives the training log.
        log_every: steps between lines of the log.
        seed: seed of the random weights.
    """

    def __init__(
        self,
        folder: str = str(EMBEDDED),
        init: str | None = None,
        export: str | None = None,
        weight_decay: float = 0.02,
        ema: float = 0.998,
        log_file: str | None = None,
        log_every: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.folder, self.export, self.weight_decay, self.ema = folder, export, weight_decay, ema
        self.log_file, self.log_every = log_file, log_every
        self.model = new_model(folder, seed)
        if init:
            trained = Model.from_pretrained(init, dtype=torch.float32)
            self.model.load_state_dict(trained.state_dict())
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self._part = ""
        self._seen: dict[str, list[float]] = {}

    def _select_trained(self, part: str) -> None:
        """Vision and oracle stages share the token embeddings, so those stay fixed until both are done."""
        if part == self._part:
            return
        self._part = part
        for name, parameter in self.model.named_parameters():
            visual = name.startswith("model.visual.")
            embedding = name.startswith("model.language_model.embed_tokens")
            decoder = not visual and not embedding
            on = {"vision": visual, "oracle": decoder, "decoder": decoder, "joint": True}[part]
            parameter.requires_grad_(on)
            parameter.grad = None

    def losses(self, batch: PackedBatch) -> tuple[Tensor, dict[str, list[float]]]:
        """The loss of the batch's stage, and figures to average: name -> values."""
        settings = batch.settings
        figures: dict[str, list[float]] = {}
        words_VW = batch.visual_words.flatten(0, 1)
        kind, weight = settings["kind"], settings.get("vision_weight", 0.0)
        loss = torch.zeros(())
        features = oracle_features(self.model, words_VW) if kind == "oracle" else visual_features(self.model, batch)
        if kind == "vision" or weight > 0:
            seen, logs = vision_loss(self.model, features, words_VW)
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
        for name, values in figures.items():
            self._seen.setdefault(name, []).extend(values)
        if (self.global_step + 1) % self.log_every == 0:
            self._write(batch.settings["name"], self._seen, batch.settings["lr"])
            self._seen = {}
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        # The average is short at first, so that it forgets the random initial weights.
        decay = min(self.ema, (1 + self.global_step) / (10 + self.global_step))
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
            if self.export and self.trainer.is_global_zero:
                save_backbone(self.model, self.average, self.folder, self.export)

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

    def _write(self, stage: str, seen: dict[str, list[float]], lr: float) -> None:
        means = {name: round(sum(values) / len(values), 4) for name, values in seen.items()}
        known = [means[family] for family in FAMILIES if family in means]
        line = {"step": self.global_step, "stage": stage, "lr": lr, **means}
        if known:
            line["accuracy"] = round(sum(known) / len(known), 4)
        if self.log_file and self.trainer.is_global_zero:
            Path(self.log_file).parent.mkdir(parents=True, exist_ok=True)
            with open(self.log_file, "a") as file:
                file.write(json.dumps(line) + "\n")

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [p for name, p in self.model.named_parameters() if p.ndim > 1 and "embed_tokens" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim < 2 or "embed_tokens" in name]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.average

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["average"]


class _Lessons(IterableDataset):
    """The batches of all stages in order, from ``first`` on."""

    def __init__(self, stages: list[Stage], seed: str, first: int = 0) -> None:
        self.stages, self.seed, self.first = stages, seed, first

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages) - self.first

    def __iter__(self) -> Iterator[PackedBatch]:
        done = 0
        for stage in self.stages:
            for step in range(stage.steps):
                if done >= self.first:
                    yield stage.batch(Random(f"{self.seed}/{done}"), step)
                done += 1


class PretrainData(lightning.LightningDataModule):
    """The curriculum: batches of all ``stages`` in order, and validation batches of the last stage's kind.

    Args:
        stages: the stages of the curriculum, in order.
        val_batches: validation batches, drawn from images that no training batch shows.
        seed: seed of all images and questions.
    """

    def __init__(self, stages: list[Stage], val_batches: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.stages, self.val_batches, self.seed = stages, val_batches, seed

    @override
    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank, first = self.trainer.global_rank, self.trainer.global_step
        return DataLoader(_Lessons(self.stages, f"pretrain/{self.seed}/{rank}", first), batch_size=None, num_workers=0)

    @override
    def val_dataloader(self) -> DataLoader:
        last = self.stages[-1]
        lesson = Stage(
            last.name, last.kind, self.val_batches, last.images, last.questions, last.image_size, suffix=[1.0, 1.0]
        )
        return DataLoader(_Lessons([lesson], f"val/{self.seed}"), batch_size=None, num_workers=0)

    @override
    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                setattr(batch, name, value.to(device))
        return batch
