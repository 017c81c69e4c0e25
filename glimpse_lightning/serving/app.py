"""The server's routes: transformers' application, of which those stay that serve one model."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers.cli.serving.server import build_server

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.serving.handler import ChatHandler
from glimpse_lightning.serving.refusals import TOO_LARGE, UNAUTHORIZED, RefusedRequestError, error_body

CHAT, LEFT = "/v1/chat/completions", 499
"""The route of chat requests, and the status under which those count whose client has left."""
KEPT = ("/v1/models", "/health")
"""Routes of transformers that stay; others load models, or read what this server does not answer."""
_LOOK = 0.1  # seconds between two looks at whether a client is still there


def build_app(handler: ChatHandler, max_body: int = 32 * 2**20, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        handler: handler of chat requests.
        max_body: bytes of the largest body.
        api_key: key that ``/v1`` asks for as a bearer token; ``None``: none.
    """
    unused: Any = None
    models, state = handler.model_manager, handler.generation_state
    app = build_server(models, handler, unused, unused, unused, unused, state)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in KEPT]

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        status = 500
        try:
            answer = await _while_there(request, handler, await _body(request, max_body))
            status = answer.status_code
            return answer
        except (RefusedRequestError, HTTPException) as error:
            status = error.status if isinstance(error, RefusedRequestError) else error.status_code
            raise
        finally:
            handler.metrics.requests.labels(str(status)).inc()

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(handler.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RefusedRequestError)
    async def refused(_: Request, error: RefusedRequestError) -> Response:
        return JSONResponse(error_body(str(error), error.status), error.status)

    @app.exception_handler(HTTPException)
    async def refused_by_transformers(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        said = str(error) if isinstance(error, GlimpseError) else "The model failed on this request."
        return JSONResponse(error_body(said, 500), 500)

    if api_key is not None:
        app.add_middleware(BearerKey, key=api_key)
    return app


class BearerKey:
    """Middleware that lets requests to ``/v1`` pass only with the key.

    Args:
        app: the application.
        key: the key.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self.key):
                message = "Expected this server's API key as a bearer token, but got none, or another one."
                await JSONResponse(error_body(message, UNAUTHORIZED), UNAUTHORIZED)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _body(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a request, of which no more than ``most`` bytes are read."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise RefusedRequestError(f"Expected a body of at most {most} bytes; send smaller images.", TOO_LARGE)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedRequestError(f"Expected a body of JSON, but it cannot be read ({error}).") from error
    if not isinstance(body, dict):
        raise RefusedRequestError("Expected a JSON object with `messages`.")
    return body


async def _while_there(request: Request, handler: ChatHandler, body: dict[str, Any]) -> Response:
    """The answer, worked on only while the client is there."""
    work = asyncio.create_task(handler.handle_request(body, request.state.request_id))
    try:
        while not (await asyncio.wait({work}, timeout=_LOOK))[0]:
            if await request.is_disconnected():
                return Response(status_code=LEFT)
        return work.result()
    finally:
        work.cancel()
