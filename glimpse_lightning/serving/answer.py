"""One answer on its way from tokens to the client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.cli.serving.utils import response_events_to_chunks

from glimpse_lightning.serving.chat_request import ChatRequest
from glimpse_lightning.serving.refusals import TIMED_OUT, RefusedRequestError

STOPPED, CUT = "stop", "length"
"""Reasons why an answer ended: a token or text that ends it, or its longest length."""


@dataclass(frozen=True)
class Failed:
    """The end of an answer that failed.

    Attributes:
        error: the error, of which the client is told.
    """

    error: Exception


class Answer:
    """An answer whose text reaches an asyncio queue as it is decoded; ``None`` there is its end.

    Tokens come from the inference thread, everything else happens in the server's.

    Args:
        request: the request.
        prompt: processor outputs of its conversation.
        tokenizer: the Rust tokenizer.
        ends: ids of tokens that end an answer.
        deadline: time by ``time.monotonic`` at which the answer is given up.
        parser: parser of transformers that separates reasoning from content; ``None``: all text is content. Its
            initial events are of the prompt, which it does not recognise in templates of other models, and are not
            sent.
        done: function that is called once, when the answer has ended.

    Attributes:
        queue: pieces of the answer: ``str``, transformers' ``ReasoningText`` and ``ToolCall``, :class:`Failed`,
            ``None``.
        visual_tokens: visual tokens of the prompt, and those that were kept; ``None`` until they are known.
        arrived: time by ``time.monotonic`` at which the request arrived.
    """

    def __init__(
        self,
        request: ChatRequest,
        prompt: dict[str, Any],
        tokenizer: Any,
        ends: frozenset[int],
        deadline: float,
        parser: Any = None,
        done: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        self.request, self.prompt, self.ends, self.deadline = request, prompt, ends, deadline
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.visual_tokens: tuple[int, int] | None = None
        self.arrived = time.monotonic()
        self.total_tokens = 0
        self.finish_reason = STOPPED
        self._tokenizer, self._parser, self._done = tokenizer, parser, done
        self._loop = asyncio.get_running_loop()
        self._decoded = DecodeStream([], skip_special_tokens=parser is None)
        self._held = ""
        self._over, self._once = threading.Event(), threading.Lock()

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.prompt["input_ids"].shape[1])

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of the model."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Give the answer up, as nobody waits for it any more; nothing where it has ended."""
        if self._once.acquire(blocking=False):
            self._over.set()
            self._loop.call_soon_threadsafe(self._done, self)

    def put(self, token: int) -> None:
        """Take the next token."""
        if self.over:
            return
        if time.monotonic() > self.deadline:
            self.fail(RefusedRequestError("The answer took longer than this server allows; ask for less.", TIMED_OUT))
            return
        if token in self.ends:
            self.end(STOPPED)
            return
        self.total_tokens += 1
        self._held += self._decoded.step(self._tokenizer, token) or ""
        found = [place for place in map(self._held.find, self.request.stop) if place >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.end(STOPPED)
        elif self.total_tokens >= self.request.max_new_tokens:
            self.end(CUT)
        else:
            self._emit(len(self._held) - self._may_begin_a_stop())

    def end(self, reason: str) -> None:
        """Send what is left, and the end."""
        self.finish_reason = reason
        self._emit(len(self._held))
        if self._parser is not None:
            with suppress(ValueError, RuntimeError):  # the answer was cut within a region, which has no content then
                self._push(response_events_to_chunks(self._parser.finalize()[1]))
        self._finish(None)

    def fail(self, error: Exception) -> None:
        """End with an error."""
        if not self.over:
            self._finish(Failed(error))

    def _finish(self, last: Any) -> None:
        self._push([last])
        self.cancel()

    def _may_begin_a_stop(self) -> int:
        """Characters at the end of the text that a stop may begin with."""
        ends = (size for stop in self.request.stop for size in range(1, len(stop)) if self._held.endswith(stop[:size]))
        return max(ends, default=0)

    def _emit(self, count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            self._push([text] if self._parser is None else response_events_to_chunks(self._parser.feed(text)))

    def _push(self, items: list[Any]) -> None:
        for item in items:
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)
