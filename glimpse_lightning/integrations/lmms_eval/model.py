"""The model ``glimpse`` of lmms-eval."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from PIL import Image
from tqdm import tqdm

from glimpse_lightning.cli.packaged_recipes import find_recipe
from glimpse_lightning.cli.recipe_check import check
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.images import load_image, upright_rgb
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.answers import prefill
from glimpse_lightning.evaluation.evaluator import kept_and_total
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.metrics import Retention
from glimpse_lightning.model.resolution import check_fewer
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.keys import stable_key
from glimpse_lightning.runtime.source import FIELDS, Source

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
PASSED_ON = ("top_k", "num_beams", "repetition_penalty", "length_penalty")
LOADING = ("dtype", "attn_implementation")
READ = frozenset(("until", "max_new_tokens", "temperature", "top_p", "do_sample", *PASSED_ON))


class Glimpse(lmms):
    """A vision-language model whose visual tokens are pruned, as one of lmms-eval's simple models: images, then text.

    Every task that shows images, or none, and asks for text (``generate_until``) can be run. After the answers, the
    share of visual tokens kept, over all processes, is written to the log and to ``throughput`` of the results file:
    ``avg_retention``, its quantiles, and ``avg_retention_<task>``.

    Args:
        pretrained: the backbone: hub id, folder or ``glimpse-tiny``; default: the recipe's.
        pruner: folder or hub id of a saved pruner.
        recipe: file of the recipe that defines the pruner, or name of a packaged one (``methods/fastv``). Without
            pruner and recipe, the full model is evaluated.
        dtype: data type of the weights; default: the recipe's, else the one in which they were saved.
        attn_implementation: attention kernel; default: the recipe's, else sdpa.
        device: device of the model; default: the GPU of this process, or the CPU.
        batch_size: questions at a time.
        max_batch_size: not used; lmms-eval passes it.
        max_new_tokens: longest answer, in tokens, of tasks that set none.
        pruner_revision: version of the pruner on the Hub; by default the newest.
        retention, threshold: budget in place of the pruner's, as in ``PrunedVLM.prefill``.
        **options: ``revision``, ``cache_dir`` and ``local_files_only`` of the backbone, the last two of the pruner as
            well; and settings of the backbone's image processor by name, ``min_pixels`` and ``max_pixels`` of Qwen-VL
            or ``do_pad`` of LLaVA-1.5, which overrule the recipe's.

    Raises:
        GlimpseError: where these contradict each other, or cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        pruner: str | None = None,
        recipe: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int = 128,
        pruner_revision: str | None = None,
        retention: float | None = None,
        threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise GlimpseError(f"Expected `--batch_size` to be a number from 1 on, but got {batch_size!r}.")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.device = torch.device(_own_device(device))
        options |= {"dtype": dtype, "attn_implementation": attn_implementation}
        budgets = {"retention": retention, "threshold": threshold}
        self.module = load_module(pretrained, pruner, recipe, pruner_revision, options, budgets)
        self.vlm = self.module.model.to(self.device)
        self._kept: list[tuple[str, int, int]] = []
        self._seconds, self._tokens = 0.0, 0
        self._unread: set[str] = set()

    # -- lmms-eval's interface ----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of ``requests``; those of equal generation arguments run together.

        A ``temperature`` above 0 samples, and any other is greedy. As in lmms-eval's own models, ``do_sample`` has no
        effect. An answer ends before the first text of ``until`` in it.
        """
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        size = self.batch_size
        batches = [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]
        answers: dict[int, GenerationResult] = {}
        for batch in tqdm(batches, disable=self.rank != 0, desc="Model Responding"):
            answers.update(zip(batch, self._answer([requests[index] for index in batch]), strict=True))
        return [answers[index] for index in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: a later round may ask about tokens that an earlier one has pruned."""
        raise GlimpseError(f"{_tasks(requests)} asks in several rounds, which `glimpse` does not do; leave it out.")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise GlimpseError(
            f"{_tasks(requests)} compares likelihoods of given answers, but `glimpse` only generates; choose the "
            "variant of the task that generates."
        )

    def clean(self) -> None:
        """Log the kept shares and release the model; lmms-eval calls it on every process after all answers."""
        metric = Retention(families=sorted(self.task_dict)).to(self.device)
        tasks = [task for task, _, _ in self._kept]
        kept, total = (torch.tensor([row[i] for row in self._kept], device=self.device) for i in (1, 2))
        metric.update(kept, total, tasks)
        figures = {name: float(value) for name, value in metric.compute().items()}  # over all processes
        names = {"mean": "retention"} | {name: f"retention_{name}" for name in figures if name != "mean"}
        log_metrics(
            total_elapsed_time=self._seconds,
            total_gen_tokens=self._tokens,
            avg_speed=self._tokens / self._seconds if self._seconds else 0.0,
            additional_metrics={names[name]: value for name, value in figures.items() if math.isfinite(value)},
        )
        super().clean()

    # -- one batch ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _answer(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        wanted: Mapping[str, Any] = requests[0].args[1]
        self._warn_of_unread(wanted)
        batch = self.vlm.backbone.collate([self._sample(request) for request in requests])
        started = time.perf_counter()
        seen = self.module.cut(batch)
        out = prefill(self.vlm, seen)
        ids = self.vlm.generate(prefill=out, **generation_options(wanted, self.max_new_tokens)).cpu()
        self._seconds += time.perf_counter() - started
        rows = self.vlm.backbone.until_end(ids)
        texts = self.vlm.backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)
        lengths = [len(row) for row in rows]
        kept, total = zip(*kept_and_total(out, len(requests)), strict=True)
        if seen is not batch:
            total = self._whole(batch)
            check_fewer(sum(kept), sum(total), self.vlm.backbone)
        for request, left, all_there in zip(requests, kept, total, strict=True):
            if not request.metadata.get("__padding_only__"):  # asked again so that all processes take as many steps
                self._kept.append((request.args[4], left, all_there))
        self._tokens += sum(lengths)
        return [
            GenerationResult(text=cut(text, wanted.get("until")), token_counts=TokenCounts(output_tokens=length))
            for text, length in zip(texts, lengths, strict=True)
        ]

    def _whole(self, batch: Batch) -> tuple[int, ...]:
        """Visual tokens of each question's images as they are, uncut."""
        inputs = self.module.transfer_batch_to_device(batch, self.device, 0).inputs
        return tuple(self.vlm.backbone.embed(inputs).visual.sum(1).tolist())

    def _sample(self, request: Instance) -> Sample:
        context, _, doc_to_visual, doc_id, task, split = request.args
        name = f"{task}/{split}/{doc_id}"
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        return Sample(
            id=name,
            key=stable_key(name),
            question=context.replace("<image>", "").strip(),  # the chat template puts the images in
            answers=[],
            images=[as_image(visual, name) for visual in visuals],
        )

    def _warn_of_unread(self, wanted: Mapping[str, Any]) -> None:
        unread = set(wanted) - READ - self._unread
        if unread:
            logger.warning(f"Generation arguments that `glimpse` does not read: {', '.join(sorted(unread))}.")
            self._unread |= unread


def load_module(
    pretrained: str | None,
    pruner: str | None,
    recipe: str | None,
    pruner_revision: str | None,
    options: Mapping[str, Any],
    budgets: Mapping[str, float | None] = {},
) -> VLMModule:
    """The module, its model loaded, that the arguments of :class:`Glimpse` describe.

    Args:
        pretrained, pruner, recipe, pruner_revision: the arguments of :class:`Glimpse`.
        options: arguments of ``load_backbone``, where ``None`` means the default; others are settings of the image
            processor.
        budgets: ``retention`` or ``threshold`` in place of the pruner's budget.

    Raises:
        GlimpseError: where they contradict each other, or cannot be loaded.
    """
    if pruner is None and pruner_revision is not None:
        raise GlimpseError("Expected `pruner` to say what `pruner_revision` is of, but got none.")
    source = Source(**{name: options.get(name) for name in FIELDS})
    if recipe is None:
        if pretrained is None:
            raise GlimpseError(
                "Expected `pretrained=NAME` among `--model_args`, and `pruner=DIR` for one that is pruned; or "
                "`recipe=NAME`, for example `recipe=methods/fastv`."
            )
        module = VLMModule(backbone=pretrained, pruner=pruner, pruner_source=replace(source, revision=pruner_revision))
    else:
        module = _module_of(recipe, pruner)
    loading = {name: options[name] for name in LOADING if options.get(name)}
    settings = {name: value for name, value in options.items() if name not in (*FIELDS, *LOADING)}
    module.over(pretrained or module.backbone, **loading, **source.options(), processor=settings)
    if recipe is not None and module.learns:
        raise GlimpseError(
            f"The recipe {recipe!r} trains its pruner: train it (`glimpse-lightning fit --config {recipe}`) and give "
            "the saved one as `pruner=DIR`, with `pretrained=NAME` in place of `recipe`."
        )
    module.budgets.update({name: value for name, value in budgets.items() if value is not None})
    module.configure_model()
    return module


def _module_of(recipe: str, pruner: str | None) -> VLMModule:
    if pruner is not None:
        raise GlimpseError("Expected `pruner` or `recipe` to say what prunes, but got both; drop one.")
    path = Path(recipe) if Path(recipe).is_file() else find_recipe(recipe)
    (checked,) = check("test", [path])
    if not isinstance(checked.model, VLMModule):
        raise GlimpseError(f"{path}: expected a recipe of a VLMModule, but it is of {type(checked.model)}.")
    return checked.model


def generation_options(wanted: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Arguments of ``generate`` out of a task's generation arguments."""
    options = {name: wanted[name] for name in PASSED_ON if wanted.get(name) is not None}
    longest = wanted.get("max_new_tokens")
    options["max_new_tokens"] = max_new_tokens if longest is None else int(longest)
    temperature = float(wanted.get("temperature") or 0)
    if temperature > 0:
        top_p = wanted.get("top_p")
        return {**options, "do_sample": True, "temperature": temperature, "top_p": 1.0 if top_p is None else top_p}
    options.pop("top_k", None)
    return {**options, "do_sample": False}


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """``text`` up to the first of the texts ``until``, without spaces at its ends."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop, 1)[0]
    return text.strip()


def as_image(visual: Any, where: str) -> Image.Image:
    """A task's visual as an upright RGB image.

    Raises:
        GlimpseError: where it is no image.
    """
    if isinstance(visual, Image.Image):
        return upright_rgb(visual, where)
    if isinstance(visual, (str, Path)) and not str(visual).lower().endswith(VIDEO_SUFFIXES):
        return load_image(Path(visual))
    kind = "a video" if isinstance(visual, (str, Path)) else f"an object of type {type(visual).__name__}"
    raise GlimpseError(
        f"{where}: `glimpse` evaluates tasks that show images, but this one shows {kind}; choose image tasks, or give "
        "frames as images."
    )


def _own_device(device: str | None) -> str:
    """The device of this process: ``cuda`` alone would put all processes on the first GPU."""
    if device not in (None, "cuda"):
        return str(device)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _tasks(requests: Sequence[Instance]) -> str:
    return ", ".join(sorted({str(request.task_name) for request in requests})) or "The task"
