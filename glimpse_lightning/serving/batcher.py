"""Requests that wait together are answered together."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import InferenceThread
from transformers.generation.streamers import BaseStreamer

from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.serving.answer import CUT, Answer
from glimpse_lightning.serving.sampling import RowSampling

logger = logging.getLogger(__name__)


class Batcher:
    """Prefill and decoding of waiting requests in ragged batches, on one thread.

    A batch holds the oldest request and, in order of arrival, those after it that want the same budgets, as far as they
    fit; requests with and without images stay apart. It waits for others only while some are being read. An answer that
    is complete leaves at once, and one that nobody waits for is not decoded further. If a batch fails, its requests are
    tried one by one, so that none fails for another's sake.

    Args:
        model: the model.
        max_batch: most requests in a batch.
        max_tokens: most prompt tokens in a batch, padding included; one request is always taken.
        wait: most seconds for which the oldest request waits for others that are being read.
        on_batch: function that is called with the size of every batch.
    """

    def __init__(
        self,
        model: PrunedVLM,
        max_batch: int = 16,
        max_tokens: int = 32_768,
        wait: float = 0.05,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.max_batch, self.max_tokens, self.wait = model, max_batch, max_tokens, wait
        self.on_batch = on_batch
        self._waiting: deque[Answer] = deque()
        self._expected = 0
        self._arrival = threading.Condition()
        self._thread = InferenceThread()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While the context is open, a request is being read that may be queued."""
        with self._arrival:
            self._expected += 1
        try:
            yield
        finally:
            with self._arrival:
                self._expected -= 1
                self._arrival.notify()

    def add(self, answer: Answer) -> None:
        """Queue a request."""
        with self._arrival:
            self._waiting.append(answer)
            self._arrival.notify()
        self._thread.submit(self._serve)

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._waiting)

    def _serve(self) -> None:
        """Answer one batch, if any request waits: each request submits one such call."""
        batch = self._next()
        if not batch:
            return
        self.on_batch(len(batch))
        try:
            self._run(batch)
        except Exception as error:  # whatever a model raises must not end the thread
            for answer in batch:
                if len(batch) == 1 or answer.total_tokens:
                    self._failed(answer, error)
                elif not answer.over:
                    try:
                        self._run([answer])
                    except Exception as own:
                        self._failed(answer, own)

    @staticmethod
    def _failed(answer: Answer, error: Exception) -> None:
        logger.error("A request failed: %s: %s", type(error).__name__, error, exc_info=error)
        answer.fail(error)

    def _next(self) -> list[Answer]:
        with self._arrival:
            while self._waiting and self._waiting[0].over:
                self._waiting.popleft()
            if not self._waiting:
                return []
            until = self._waiting[0].arrived + self.wait
            while self._expected and len(self._waiting) < self.max_batch and (left := until - time.monotonic()) > 0:
                self._arrival.wait(left)
            first = self._waiting[0]
            batch: list[Answer] = []
            width = 0
            for answer in list(self._waiting):
                if answer.over:
                    self._waiting.remove(answer)
                    continue
                longest = max(width, answer.length)
                fits = len(batch) < self.max_batch and longest * (len(batch) + 1) <= self.max_tokens
                if _kind(answer) == _kind(first) and (fits or not batch):
                    batch.append(answer)
                    width = longest
                    self._waiting.remove(answer)
            return batch

    @torch.no_grad()
    def _run(self, batch: Sequence[Answer]) -> None:
        asked = batch[0].request
        inputs = self.model.backbone.merge([answer.prompt for answer in batch])
        out = self.model.prefill(
            questions=[answer.request.question for answer in batch],
            retention=asked.retention,
            threshold=asked.threshold,
            **inputs,
        )
        samples, kept = out.tokens.sample, out.kept()
        before = torch.bincount(samples, minlength=len(batch)).tolist()
        after = torch.bincount(samples[kept], minlength=len(batch)).tolist()
        for answer, counts in zip(batch, zip(before, after, strict=True), strict=True):
            answer.visual_tokens = counts
        rows, longest = Rows(batch), max(answer.request.max_new_tokens for answer in batch)
        self.model.generate(
            out,
            generation_config=greedy(self.model.generation_config, longest),
            logits_processor=LogitsProcessorList([RowSampling([answer.request.sampling for answer in batch])]),
            stopping_criteria=StoppingCriteriaList([rows]),
            streamer=rows,
        )


class Rows(StoppingCriteria, BaseStreamer):
    """The answers of a batch, by row: each gets its tokens and says when it wants no more.

    Args:
        answers: answers by row.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers
        self._prompted = False

    def put(self, value: Tensor) -> None:
        """Take the next token of every row, ``[B]``; first comes the prompt, ``[B, N]``."""
        if not self._prompted:
            self._prompted = True
            return
        for answer, token in zip(self.answers, value.flatten().tolist(), strict=True):
            answer.put(token)

    def end(self) -> None:
        """End what is left, where a checkpoint's own settings stop all rows (``max_time``, ``stop_strings``)."""
        for answer in self.answers:
            if not answer.over:
                answer.end(CUT)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([answer.over for answer in self.answers], device=input_ids.device)


def _kind(answer: Answer) -> tuple[Any, ...]:
    """What requests of one batch have in common."""
    return bool(answer.request.images), answer.request.retention, answer.request.threshold


def greedy(config: GenerationConfig, max_new_tokens: int) -> GenerationConfig:
    """A checkpoint's settings for greedy decoding of one answer a prompt; draws are made by `RowSampling`."""
    config = copy.deepcopy(config)
    config.do_sample, config.num_beams, config.num_return_sequences = False, 1, 1
    config.max_new_tokens = max_new_tokens
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "max_length"):
        setattr(config, name, None)
    return config
