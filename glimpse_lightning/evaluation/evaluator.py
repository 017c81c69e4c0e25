"""Evaluation of a pruner: the full model and the pruned one answer the same questions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from glimpse_lightning.core.token_counts import SampleCounts, StageTokens, count_tokens
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.engine.decoding import step_after
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.request import Select
from glimpse_lightning.evaluation.answers import answer_rows, answers, greedy, prefill, with_answers
from glimpse_lightning.evaluation.records import Record
from glimpse_lightning.evaluation.shared_questions import FullAnswer, SharedQuestions
from glimpse_lightning.metrics.evidence_overlap import evidence_overlap
from glimpse_lightning.metrics.text import AnswerMetric
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.resolution import ResolutionCut, check_fewer
from glimpse_lightning.runtime.ranks import any_rank

TEACHER_TOKENS = 1024
"""Number of tokens of the full model's distribution that are stored; all others are summed up."""


def answer_log_probs(model: PrunedVLM, out: PrefillOutput, batch: Batch) -> Tensor:
    """``[B, A, vocab]`` log-probabilities at the tokens of the reference answers, decoded from ``out``."""
    logits, ids = out.logits[:, None], batch.answer_ids[:, :-1]
    if ids.shape[1]:
        step = step_after(model.backbone, out, ids, out.fork().cache)
        logits = torch.cat([logits, step.logits], 1)
    return logits.float().log_softmax(-1)


class Evaluator:
    """Evaluates the full model and pruned ones on the same questions.

    Args:
        full: full model.
        metric: metric of answers.
        max_new_tokens: length of the longest answer.
        shared: work shared with other models of this process that get the same questions; ``None``: no other model.
    """

    def __init__(
        self, full: PrunedVLM, metric: AnswerMetric, max_new_tokens: int, shared: SharedQuestions | None = None
    ) -> None:
        self.full = full
        self.metric = metric
        self.max_new_tokens = max_new_tokens
        self.shared = shared
        self.cache: dict[str, FullAnswer] = {} if shared is None else shared.answers

    @torch.no_grad()
    def embed(self, models: Iterable[PrunedVLM], batch: Batch) -> Prompt:
        """The batch's prompts, embedded once for all of ``models``, which share a backbone."""
        if batch.prompt is not None:
            return batch.prompt
        taps = dict.fromkeys(tap for model in models for tap in model.vision_layers)
        if self.shared is None:
            return self.full.backbone.embed(batch.inputs, tuple(taps))
        prompt = self.full.backbone.embed(batch.inputs, tuple({**taps, **dict.fromkeys(self.shared.taps)}))
        self.shared.add(batch, prompt)
        return prompt

    @torch.no_grad()
    def full_answers(self, batch: Batch, prompt: Prompt | None = None) -> list[FullAnswer]:
        """The full model's answers, computed once and stored under the questions' contents, because names are unique
        within one dataset only.
        """
        names = [sample.content() for sample in batch.samples]
        missing = not all(name in self.cache for name in names)
        if any_rank(missing, self.full.device) if self.full.sharded else missing:
            out = prefill(self.full, batch, prompt)
            said = greedy(self.full, out, self.max_new_tokens)
            rows = answer_rows(self.full, batch, said)
            logs = answer_log_probs(self.full, out, with_answers(self.full, batch, rows))
            top = logs.topk(min(TEACHER_TOKENS, logs.shape[-1]), dim=-1)
            for row, (name, text) in enumerate(zip(names, self.full.backbone.decode(said), strict=True)):
                length = len(rows[row])
                values, ids = top.values[row, :length].cpu().clone(), top.indices[row, :length].int().cpu().clone()
                self.cache[name] = FullAnswer(text, rows[row], ids, values)
        return [self.cache[name] for name in names]

    @torch.no_grad()
    def evaluate(
        self,
        model: PrunedVLM,
        batch: Batch,
        with_kl: bool = True,
        prompt: Prompt | None = None,
        resolution: ResolutionCut | None = None,
        select: Select | None = None,
    ) -> tuple[list[Record], PrefillOutput]:
        """Records of all samples with a weight above 0, and the prefill that they come from.

        Args:
            resolution: resolution cut of the images for ``model``, but not for the full model; kept tokens are counted
                relative to those of whole images, and overlap with evidence is not defined. ``None``: whole images.
            select: selection of tokens for ``model``, in place of its stages' policies; ``None``: the policies select.
        """
        prompt = self.embed([model], batch) if prompt is None else prompt
        fulls = self.full_answers(batch, prompt)
        seen = batch if resolution is None else resolution.applied(batch, model.backbone)
        is_full = model.pruner is None and seen is batch
        if is_full:
            texts, out, logs = [full.text for full in fulls], prefill(model, batch, prompt), None
        else:
            texts, out = answers(model, seen, self.max_new_tokens, prompt if seen is batch else None, select)
            along = with_answers(model, seen, [full.along for full in fulls])
            logs = answer_log_probs(model, out, along) if with_kl else None
        keep = out.kept()
        counts = token_counts(model, out, len(batch.samples)) if seen is batch else cut_counts(model, out, prompt)
        boxes = [sample.boxes if seen is batch else None for sample in batch.samples]
        evidence = evidence_mask(out.tokens, boxes)
        overlap, annotated = evidence_overlap(keep, evidence, out.tokens.sample, len(batch.samples))
        kept, touched = (_per_sample(mask, out, len(batch.samples)) for mask in (keep, evidence))
        total = prompt.visual.sum(1).tolist()
        records = []
        for row, (sample, full) in enumerate(zip(batch.samples, fulls, strict=True)):
            if batch.weight[row] == 0:
                continue
            recall, precision, iou = overlap[row].tolist() if annotated[row] else (None, None, None)
            score, full_score = (
                self.metric.score(text, sample.answers) if sample.answers else None for text in (texts[row], full.text)
            )
            records.append(
                Record(
                    id=sample.id,
                    family=sample.family,
                    question=sample.question,
                    references=sample.answers,
                    prediction=texts[row],
                    full_prediction=full.text,
                    score=score,
                    full_score=full_score,
                    kept=kept[row],
                    total=total[row],
                    entering=counts[row].entering,
                    layer_mean=counts[row].layer_mean,
                    kv=counts[row].kv,
                    flops=counts[row].flops,
                    kl=full.kl(logs[row]) if logs is not None else 0.0 if is_full else None,
                    evidence=touched[row] if boxes[row] is not None else None,
                    evidence_recall=recall,
                    evidence_precision=precision,
                    evidence_iou=iou,
                    image=sample.image_name,
                )
            )
        return records, out


def token_counts(model: PrunedVLM, out: PrefillOutput, samples: int) -> list[SampleCounts]:
    """Visual tokens that each of ``samples`` questions kept, counted in four ways."""
    total = _per_sample(torch.ones_like(out.tokens.item, dtype=torch.bool), out, samples)
    survivors = _per_sample(out.kept(), out, samples)
    text = [columns - left for columns, left in zip(out.prompt_keep.sum(1).tolist(), survivors, strict=True)]
    stages = model.pruner.stages if model.pruner is not None else []
    left = [
        [StageTokens(stage.after_layer, count, stage.early_kv) for stage, count in zip(stages, counts, strict=True)]
        for counts in left_by_stage(out, samples)
    ]
    return [count_tokens(total[i], text[i], left[i], model.backbone.facts) for i in range(samples)]


def left_by_stage(out: PrefillOutput, samples: int) -> list[list[int]]:
    """Number of visual tokens after each stage, for each of ``samples`` questions."""
    alive = torch.ones_like(out.tokens.item, dtype=torch.bool)
    counts: list[list[int]] = [[] for _ in range(samples)]
    for keep in out.keep:
        alive = alive & keep
        for mine, left in zip(counts, _per_sample(alive, out, samples), strict=True):
            mine.append(left)
    return counts


def cut_counts(model: PrunedVLM, out: PrefillOutput, whole: Prompt) -> list[SampleCounts]:
    """Visual tokens of questions about shrunk images, none of them pruned; FLOPs against those of ``whole`` images.

    Raises:
        GlimpseError: if there are as many tokens as for whole images.
    """
    entering = _per_sample(out.kept(), out, len(whole.visual))
    check_fewer(sum(entering), int(whole.visual.sum()), model.backbone)
    cost = model.backbone.facts.layer_flops
    columns = zip(out.prompt_keep.sum(1).tolist(), whole.mask.sum(1).tolist(), strict=True)
    shares = [cost(small) / cost(large) for small, large in columns]
    return [SampleCounts(left, left, left, share) for left, share in zip(entering, shares, strict=True)]


def kept_and_total(out: PrefillOutput, samples: int) -> list[tuple[int, int]]:
    """For each sample, the number of visual tokens that decoding sees, and the number before pruning."""
    keep = out.kept()
    return list(zip(_per_sample(keep, out, samples), _per_sample(torch.ones_like(keep), out, samples), strict=True))


def _per_sample(mask: Tensor, out: PrefillOutput, samples: int) -> list[int]:
    """Visual tokens of each sample where ``mask [V]`` is true."""
    return torch.bincount(out.tokens.sample[mask], minlength=samples).tolist()
