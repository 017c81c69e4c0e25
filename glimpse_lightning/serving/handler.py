"""Chat requests, from a body to an answer, on transformers' handler and model manager."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerationState, Modality, ReasoningText, build_response_parser

from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.serving.answer import Answer, Failed
from glimpse_lightning.serving.batcher import Batcher
from glimpse_lightning.serving.chat_request import ChatRequest, Limits, read_request
from glimpse_lightning.serving.metrics import Metrics
from glimpse_lightning.serving.refusals import BUSY, TIMED_OUT, RefusedRequestError, error_body


class OneModel(ModelManager):
    """Transformers' model manager with one model, which is loaded already and stays.

    Args:
        model: the model.
        name: name under which it is served.
    """

    def __init__(self, model: PrunedVLM, name: str) -> None:
        super().__init__()
        self.model, self.force_model, self.started = model, name, int(time.time())

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is; revisions belong to `--source`."""
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> Any:
        """The model and its processor."""
        return self.model, self.model.backbone.processor

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The one model, in OpenAI's form."""
        return [{"id": self.force_model, "object": "model", "created": self.started, "owned_by": "glimpse_lightning"}]

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Text and images."""
        return Modality.VLM


class ChatHandler(ChatCompletionHandler):
    """Answers chat requests in batches; ``usage`` counts visual tokens before and after pruning.

    Args:
        models: the served model.
        batcher: batches of waiting requests.
        metrics: figures of the server.
        limits: bounds of a request.
        max_waiting: most requests that are worked on or wait at a time.
        timeout: seconds in which an answer has to be complete.
        retention: budget of requests that name none; ``None``: the policies' own.
        threshold: threshold of such requests, likewise.
    """

    def __init__(
        self,
        models: OneModel,
        batcher: Batcher,
        metrics: Metrics,
        limits: Limits,
        max_waiting: int = 128,
        timeout: float = 120.0,
        retention: float | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(models, GenerationState())
        self.model, self.batcher, self.limits = models.model, batcher, limits
        self.max_waiting, self.timeout = max_waiting, timeout
        self.defaults = (retention, threshold)
        self.metrics = metrics
        metrics.waiting.set_function(lambda: batcher.waiting)
        self.here = 0
        # Media may have to be fetched, and wait; a tokenizer must not be used by two threads at once.
        self._media, self._prompts = ThreadPoolExecutor(16), ThreadPoolExecutor(1)
        backbone = self.model.backbone
        self._tokenizer = getattr(backbone.tokenizer, "_tokenizer", None)
        if self._tokenizer is None:
            raise GlimpseError(
                f"Expected a fast tokenizer, but that of {backbone.name!r} is a {type(backbone.tokenizer).__name__}."
            )
        self._ends = frozenset(backbone.end_token_ids)
        self._context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    async def handle_request(self, body: dict[str, Any], request_id: str) -> StreamingResponse | JSONResponse:
        """The answer to a body, whole or as a stream.

        Raises:
            RefusedRequestError: for a request that is not answered, with its status.
        """
        arrived = time.monotonic()
        model_id, _, processor = self._resolve_model(body)
        if self.here >= self.max_waiting:
            raise RefusedRequestError(f"All {self.max_waiting} places in the queue are taken; try again later.", BUSY)
        self.here += 1
        try:
            with self.batcher.expecting():
                request, prompt, parser = await asyncio.wait_for(self._read(body, processor), self.timeout)
                deadline = arrived + self.timeout
                answer = Answer(request, prompt, self._tokenizer, self._ends, deadline, parser, self._left)
                self.batcher.add(answer)
        except BaseException as error:
            self.here -= 1
            if isinstance(error, TimeoutError):
                raise RefusedRequestError("Reading the request's images took too long.", TIMED_OUT) from error
            raise
        if body.get("stream"):
            return StreamingResponse(self._pieces(answer, request_id, model_id), media_type="text/event-stream")
        return JSONResponse(await self._whole(answer, request_id, model_id))

    async def _read(self, body: dict[str, Any], processor: Any) -> tuple[ChatRequest, dict[str, Any], Any]:
        """A request without its images, its prompt, and a parser of its answer."""
        loop = asyncio.get_running_loop()
        request = await loop.run_in_executor(self._media, read_request, body, self.limits)
        if request.retention is None and request.threshold is None:
            retention, threshold = self.defaults
            request = replace(request, retention=retention, threshold=threshold)
        self._check_budget(request)
        try:
            prompt = await loop.run_in_executor(self._prompts, self.model.backbone.converse, request.messages)
        except GlimpseError as error:
            raise RefusedRequestError(str(error)) from error
        length, context = prompt["input_ids"].shape[1], self._context
        if context is not None:
            if length >= context:
                raise RefusedRequestError(
                    f"Expected fewer than {context} tokens, this model's longest context, but the prompt has {length}; "
                    "send fewer or smaller images, or less text."
                )
            request = replace(request, max_new_tokens=min(request.max_new_tokens, context - length))
        parser = await loop.run_in_executor(
            self._prompts, build_response_parser, processor, self.model, prompt["input_ids"]
        )
        return replace(request, messages=[]), prompt, parser

    def _check_budget(self, request: ChatRequest) -> None:
        if request.retention is None and request.threshold is None:
            return
        if self.model.pruner is None:
            raise RefusedRequestError("This server prunes nothing, so `retention` and `threshold` have no effect here.")
        try:
            self.model.pruner.with_budgets(request.retention, request.threshold)
        except ValueError as error:
            raise RefusedRequestError(str(error)) from error

    def _left(self, answer: Answer) -> None:
        self.here -= 1
        metrics = self.metrics
        metrics.seconds.observe(time.monotonic() - answer.arrived)
        if answer.visual_tokens is not None:
            metrics.seen.inc(answer.visual_tokens[0])
            metrics.kept.inc(answer.visual_tokens[1])
            metrics.prompted.inc(answer.length)
            metrics.written.inc(answer.total_tokens)

    async def _whole(self, answer: Answer, request_id: str, model_id: str) -> dict[str, Any]:
        content, reasoning = "", ""
        try:
            while (piece := await self._next(answer)) is not None:
                if isinstance(piece, Failed):
                    raise piece.error
                if isinstance(piece, ReasoningText):
                    reasoning += piece
                elif isinstance(piece, str):
                    content += piece
        except BaseException:
            answer.cancel()
            raise
        return self._build_completion(
            request_id, content, model_id, answer.finish_reason, _usage(answer), reasoning_content=reasoning or None
        )

    async def _pieces(self, answer: Answer, request_id: str, model_id: str) -> AsyncGenerator[str, None]:
        try:
            yield self._build_chunk_sse(request_id, role="assistant", model=model_id)
            while (piece := await self._next(answer)) is not None:
                if isinstance(piece, Failed):
                    raise piece.error
                if isinstance(piece, ReasoningText):
                    yield self._build_chunk_sse(request_id, model=model_id, reasoning_content=piece)
                elif isinstance(piece, str):
                    yield self._build_chunk_sse(request_id, model=model_id, content=piece)
            reason = answer.finish_reason
            yield self._build_chunk_sse(request_id, model=model_id, finish_reason=reason, usage=_usage(answer))
        except GlimpseError as error:
            yield f"data: {json.dumps(error_body(str(error), getattr(error, 'status', 500)))}\n\n"
        except Exception:  # the batcher has logged it
            yield f"data: {json.dumps(error_body('The model failed on this request.', 500))}\n\n"
        finally:  # also where the client has left
            answer.cancel()
        yield "data: [DONE]\n\n"

    async def _next(self, answer: Answer) -> Any:
        """The next piece of an answer.

        Raises:
            RefusedRequestError: where it takes longer than allowed.
        """
        left = answer.deadline - time.monotonic()
        with suppress(TimeoutError):
            if left > 0:
                return await asyncio.wait_for(answer.queue.get(), left)
        raise RefusedRequestError(
            f"The answer took longer than the {self.timeout:g} seconds that this server allows; ask for a shorter one.",
            TIMED_OUT,
        )


def _usage(answer: Answer) -> CompletionUsage:
    before, after = answer.visual_tokens or (0, 0)
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": answer.length,
            "completion_tokens": answer.total_tokens,
            "total_tokens": answer.length + answer.total_tokens,
            "visual_tokens": {"before": before, "after": after},
        }
    )
