"""A language model as judge, through any OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from warnings import warn

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import write_text

PROMPT = """\
You compare an answer to a question about an image with the reference answer. You do not see the image.
Question: {question}
Reference answer: {reference}
Answer: {answer}
Is the answer right, whatever its wording? Reply with one line `score: x`, x between 0 (wrong) and 1 (right)."""
SCORE = re.compile(r"score:\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
BACK_OFF = 2.0
"""Factor by which each wait between attempts is longer than the one before."""


class JudgeError(GlimpseError):
    """A call to the judge has failed in every attempt."""


class _Failed(Exception):
    """A failed attempt. ``wait``: seconds that the server asks to wait; ``final``: no further attempt can succeed."""

    def __init__(self, message: str, wait: float = 0.0, final: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.final = final


class Judge:
    """Score in [0, 1] by a language model, at temperature 0.

    The reply must contain exactly one ``score: x`` with x in [0, 1] (GlimpsePrune's form; its reading of anything else
    as 0, or of 3 as 1, is not copied). A call fails on a timeout, an HTTP error or any other reply. It is repeated with
    growing waits, and then counted as failed. A failure is not a score of 0: with ``on_failure: skip`` the answer's
    reward is NaN, which excludes the answer from its group.

    Args:
        endpoint: base URL up to and including the version, such as ``http://localhost:8000/v1``.
        model: name of the model at the endpoint.
        api_key_env: environment variable with the API key; empty or unset: no key is sent.
        prompt: the request, with ``{question}``, ``{reference}`` and ``{answer}``.
        cache: folder in which scores are kept; ``None``: no cache.
        timeout: seconds for one attempt, connection and reply together.
        attempts: largest number of attempts per call.
        wait: seconds before the second attempt; each further wait is twice as long.
        rate: largest number of calls started per second.
        parallel: largest number of calls at the same time.
        max_tokens: length of the longest reply.
        on_failure: treatment of a failed call: ``skip`` makes the reward NaN, ``raise`` stops the run.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        prompt: str = PROMPT,
        cache: str | None = ".cache/judge",
        timeout: float = 60.0,
        attempts: int = 4,
        wait: float = 1.0,
        rate: float = 10.0,
        parallel: int = 8,
        max_tokens: int = 64,
        on_failure: Literal["skip", "raise"] = "skip",
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise GlimpseError(f"Expected the judge's `endpoint` to be an http(s) URL, but got {endpoint!r}.")
        if "{answer}" not in prompt:
            raise GlimpseError("Expected the judge's `prompt` to contain {answer}, but it does not.")
        if on_failure not in ("skip", "raise"):
            raise GlimpseError(f"Expected the judge's `on_failure` to be 'skip' or 'raise', but got {on_failure!r}.")
        positive = {"timeout": timeout, "attempts": attempts, "rate": rate, "parallel": parallel}
        for name, value in positive.items():
            if not value > 0:
                raise GlimpseError(f"Expected the judge's `{name}` to be positive, but got {value}.")
        self.url = endpoint.rstrip("/") + "/chat/completions"
        self.model = model
        self.api_key_env = api_key_env
        self.prompt = prompt
        self.cache = None if cache is None else Path(cache).expanduser()
        self.timeout = timeout
        self.attempts = attempts
        self.wait = wait
        self.rate = rate
        self.parallel = parallel
        self.max_tokens = max_tokens
        self.on_failure = on_failure
        self.counts = {"calls": 0, "cached": 0, "retries": 0, "failed": 0}
        self._lock = threading.Lock()
        self._next_start = 0.0

    def __call__(self, question: str, answer: str, reference: str) -> float:
        """The judge's score, or NaN if the call failed and ``on_failure`` is ``skip``.

        Raises:
            JudgeError: if the call failed and ``on_failure`` is ``raise``.
        """
        request = self._request(question, answer, reference)
        cached = self._cached(request)
        if cached is not None:
            self._count("cached")
            return cached
        self._count("calls")
        try:
            score = self._ask(request)
        except _Failed as failure:
            self._count("failed")
            message = f"The judge at {self.url} gave no score after {self.attempts} attempts: {failure}."
            if self.on_failure == "raise":
                raise JudgeError(
                    f"{message} See that the server runs and knows model {self.model!r}; `on_failure: skip` would "
                    "leave such answers out instead."
                ) from failure
            warn(f"{message} The answer is left out.", stacklevel=2)
            return math.nan
        self._keep(request, score)
        return score

    def many(self, answers: Sequence[dict[str, str]]) -> list[float]:
        """Scores of several answers, from several calls at once. Equal answers share one call."""
        unique = {json.dumps(answer, sort_keys=True): answer for answer in answers}
        with ThreadPoolExecutor(self.parallel) as pool:
            scores = dict(zip(unique, pool.map(lambda answer: self(**answer), unique.values()), strict=True))
        return [scores[json.dumps(answer, sort_keys=True)] for answer in answers]

    def _request(self, question: str, answer: str, reference: str) -> dict[str, Any]:
        content = self.prompt
        for name, text in {"question": question, "reference": reference, "answer": answer}.items():
            content = content.replace(f"{{{name}}}", text)
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0.0, "max_tokens": self.max_tokens}

    def _ask(self, request: dict[str, Any]) -> float:
        wait = self.wait
        for attempt in range(1, self.attempts + 1):
            self._take_turn()
            try:
                return parse_score(self._reply(request))
            except _Failed as failure:
                if failure.final or attempt == self.attempts:
                    raise
                self._count("retries")
                time.sleep(max(wait, failure.wait))
                wait *= BACK_OFF
        raise AssertionError("unreachable")

    def _take_turn(self) -> None:
        """Wait until this call may begin."""
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 1 / self.rate
        time.sleep(max(0.0, start - time.monotonic()))

    def _reply(self, request: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        if key:
            headers["Authorization"] = f"Bearer {key}"
        call = urllib.request.Request(self.url, json.dumps(request).encode(), headers)
        deadline = time.monotonic() + self.timeout
        try:
            with urllib.request.urlopen(call, timeout=self.timeout) as response:
                body = _read(response, deadline)
        except urllib.error.HTTPError as error:
            after = error.headers.get("Retry-After", "") if error.headers else ""
            transient = error.code == 429 or error.code >= 500
            wait = min(float(after), self.timeout) if after.isdigit() else 0.0
            raise _Failed(f"HTTP status {error.code}", wait, final=not transient) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Failed(f"{type(error).__name__}: {error}") from error
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Failed(f"the reply is no chat completion: {body[:80]!r}") from error
        return str(content)

    def _file(self, request: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        name = hashlib.sha256(json.dumps([self.url, request], sort_keys=True).encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    def _cached(self, request: dict[str, Any]) -> float | None:
        file = self._file(request)
        try:
            score = json.loads(file.read_text(encoding="utf-8"))["score"] if file is not None else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: ask again
            return None
        return float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None

    def _keep(self, request: dict[str, Any], score: float) -> None:
        file = self._file(request)
        if file is not None:
            write_text(file, json.dumps({"score": score}))

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def _read(response: Any, deadline: float) -> bytes:
    """The whole body, read before ``deadline``. The connection's own timeout holds for a single read only, so a slow
    server could exceed it in total.
    """
    body = bytearray()
    while chunk := response.read1(65536):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the reply took too long")
    return bytes(body)


def parse_score(reply: str) -> float:
    """The one ``score: x`` of a reply.

    Raises:
        _Failed: if the reply has no score or several, or x is not in [0, 1].
    """
    found = SCORE.findall(reply)
    if len(found) != 1 or not 0 <= float(found[0]) <= 1:
        raise _Failed(f"the reply has no single `score: x` with x from 0 to 1: {reply[:80]!r}")
    return float(found[0])


judge = Judge
"""Name of the reward in recipes."""
