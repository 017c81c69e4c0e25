"""Greedy answers of a model, and the full model's answers to questions without references."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.backbones.collate import padded_answers
from glimpse_lightning.backbones.fingerprint import Fingerprint, fingerprint
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.request import Select
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives.policy_gradient import sequence_mask
from glimpse_lightning.objectives.rollouts import end_ids, one_more
from glimpse_lightning.runtime.appended_lines import AppendedLines
from glimpse_lightning.runtime.ranks import any_rank


def prefill(
    model: PrunedVLM, batch: Batch, prompt: Prompt | None = None, select: Select | None = None
) -> PrefillOutput:
    """Prefill of the batch's prompts. ``prompt`` holds the embedded prompts, if they exist; ``select`` replaces the
    stages' policies.
    """
    inputs: dict[str, Any] = batch.inputs
    return model.prefill(
        prompt=prompt, keys=batch.key, questions=batch.questions, boxes=batch.boxes, select=select, **inputs
    )


def greedy(model: PrunedVLM, out: PrefillOutput, max_new_tokens: int) -> Tensor:
    """``[B, new]`` tokens of the greedy answers from a prefill."""
    ids: Tensor = model.generate(prefill=out, max_new_tokens=max_new_tokens, do_sample=False)
    return ids


@torch.no_grad()
def answers(
    model: PrunedVLM, batch: Batch, max_new_tokens: int, prompt: Prompt | None = None, select: Select | None = None
) -> tuple[list[str], PrefillOutput]:
    """Greedy answers to a batch of questions, and the prefill that they continue.

    Args:
        prompt: embedded prompts of the batch; ``None``: they are embedded here.
        select: selection of tokens in place of the stages' policies; ``None``: the policies select.
    """
    out = prefill(model, batch, prompt, select)
    return model.backbone.decode(greedy(model, out, max_new_tokens)), out


def answer_rows(model: PrunedVLM, batch: Batch, said: Tensor) -> list[list[int]]:
    """The tokens of each sample's first reference answer, or, without any, of ``said [B, new]``, end token included."""
    own, lengths = batch.answer_mask.sum(1).tolist(), sequence_mask(said, end_ids(model)).sum(1).tolist()
    return [
        batch.answer_ids[row, : own[row]].tolist() if sample.answers else said[row, : lengths[row]].tolist()
        for row, sample in enumerate(batch.samples)
    ]


def with_answers(model: PrunedVLM, batch: Batch, rows: Sequence[Sequence[int]]) -> Batch:
    """``batch`` with ``rows`` of answer tokens; ``batch`` itself if every sample has reference answers."""
    if all(sample.answers for sample in batch.samples):
        return batch
    ids, mask = padded_answers(rows, model.backbone.end_token_ids[0])
    if model.sharded and ids.shape[1] == 1:  # else no token would run through the layers, while other ranks wait
        ids, mask = one_more(ids), one_more(mask)
    return replace(batch, answer_ids=ids.to(batch.answer_ids.device), answer_mask=mask.to(batch.answer_mask.device))


class WrittenAnswers:
    """The full model's greedy answers to unlabelled questions, each written once and kept on disk.

    The files are ``<folder>/<key>/<run>.jsonl``. The key is a digest of everything besides the question that changes an
    answer: weights and their data type, processor, chat template and generation settings. Within a file, the name of an
    answer is ``Sample.content()``, a digest of wording and pixels. Answers of a sharded model are not kept, because no
    rank has all of its weights.

    Args:
        model: the full model.
        folder: folder of the files; ``None``: answers are not kept.
        max_new_tokens: length of the longest answer.
        run: name of this run and rank, which writes to a file of its own and reads all files.
    """

    def __init__(self, model: PrunedVLM, folder: Path | None, max_new_tokens: int, run: str = "run") -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.rows: dict[str, list[int]] = {}
        self._lines: AppendedLines | None = None
        weights = fingerprint(model.backbone)
        if folder is not None and weights:
            self._lines = AppendedLines(folder / _key(model, weights, max_new_tokens), run)
            self.rows = {line["question"]: line["tokens"] for line in self._lines.of_all()}

    @torch.no_grad()
    def filled(self, batch: Batch) -> Batch:
        """``batch`` with answers for samples without any. Answers that are not known yet are generated in one batch."""
        names = ["" if sample.answers else sample.content() for sample in batch.samples]
        new = {name for name in names if name and name not in self.rows}
        if any_rank(bool(new), self.model.device) if self.model.sharded else new:
            out = prefill(self.model, batch)
            rows = answer_rows(self.model, batch, greedy(self.model, out, self.max_new_tokens))
            self._keep({name: row for name, row in zip(names, rows, strict=True) if name in new})
        if not any(names):  # before anything waits for the device
            return batch
        width = batch.answer_mask.sum(1).tolist()
        own = [batch.answer_ids[row, :length].tolist() for row, length in enumerate(width)]
        return with_answers(self.model, batch, [self.rows[n] if n else ids for n, ids in zip(names, own, strict=True)])

    def _keep(self, rows: dict[str, list[int]]) -> None:
        self.rows |= rows
        if self._lines is not None:
            self._lines.add([{"question": name, "tokens": row} for name, row in rows.items()])


def _key(model: PrunedVLM, weights: Fingerprint, max_new_tokens: int) -> str:
    processor, digest = model.backbone.processor, blake2b(digest_size=8)
    images = getattr(processor, "image_processor", None)
    parts = (
        weights,
        str(model.dtype),
        None if images is None else images.to_dict(),
        getattr(processor, "chat_template", None) or getattr(model.backbone.tokenizer, "chat_template", None),
        model.generation_config.to_diff_dict(),
        max_new_tokens,
    )
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
