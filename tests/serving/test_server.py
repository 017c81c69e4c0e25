"""The server as clients see it: answers in batches equal those alone, and no client can harm another one's."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from openai import APIStatusError, OpenAI
from PIL import Image
from test_docs import COMMANDS, code

import glimpse_lightning as gl
from glimpse_lightning.serving.app import build_app
from glimpse_lightning.serving.batcher import Batcher
from glimpse_lightning.serving.chat_request import Limits, Sampling
from glimpse_lightning.serving.command import app_of, arguments
from glimpse_lightning.serving.handler import ChatHandler, OneModel
from glimpse_lightning.serving.media import Media
from glimpse_lightning.serving.metrics import Metrics

CLIENTS, REQUESTS = 16, 30


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that is served in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def model_of(retention: float = 0.3) -> gl.PrunedVLM:
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(retention))])
    return gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner).eval()


def app(model: gl.PrunedVLM, max_body: int = 2**20, api_key: str | None = None, **options: Any) -> Any:
    metrics = Metrics()
    batcher = Batcher(model, on_batch=metrics.batch.observe, wait=options.pop("wait", 0.05))
    limits = Limits(Media(max_pixels=10**6), max_images=2, max_new_tokens=16, sampling=Sampling())
    handler = ChatHandler(OneModel(model, "tiny"), batcher, metrics, limits, **options)
    return build_app(handler, max_body, api_key)


@pytest.fixture(scope="module")
def model() -> gl.PrunedVLM:
    return model_of()


@pytest.fixture(scope="module")
def address(model: gl.PrunedVLM) -> Iterator[str]:
    with running(app(model)) as found:
        yield found


def client(address: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key=options.pop("api_key", "none"), max_retries=0, **options)


def data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def asked(number: int) -> list[dict[str, Any]]:
    """A conversation about a GlyphVQA page; every fifth has no image, every seventh two."""
    sample = gl.GlyphVQA("test", size=40)[number % 40]
    images = [] if number % 5 == 4 else [sample.images[0]] * (2 if number % 7 == 6 else 1)
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}]


def said(client: OpenAI, messages: list[dict[str, Any]], **options: Any) -> tuple[str, Any]:
    answer = client.chat.completions.create(model="tiny", messages=messages, **options)  # type: ignore[arg-type]
    return answer.choices[0].message.content or "", answer


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(APIStatusError) as error:
        call()
    return error.value.status_code, str(error.value)


def metric(address: str, name: str) -> float:
    lines = urllib.request.urlopen(f"{address}/metrics").read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_many_clients_get_the_answers_that_each_would_get_alone(model: gl.PrunedVLM, address: str) -> None:
    ask = client(address)
    budgets = [None, 0.1, 0.5]
    backbone = model.backbone

    def alone(number: int) -> str:
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": part["text"]}
                    if part["type"] == "text"
                    else {"type": "image", "image": opened(part["image_url"]["url"])}
                    for part in asked(number)[0]["content"]
                ],
            }
        ]
        prompt = backbone.converse(messages)
        out = model.prefill(**prompt, retention=budgets[number % 3])
        return backbone.decode(model.generate(out, max_new_tokens=16, do_sample=False))[0]

    def served(number: int) -> tuple[str, str, int]:
        options: dict[str, Any] = {"extra_body": {"retention": budgets[number % 3]}}
        if number % 2:
            pieces = ask.chat.completions.create(model="tiny", messages=asked(number), stream=True, **options)  # type: ignore[call-overload]
            return "".join(piece.choices[0].delta.content or "" for piece in pieces).strip(), "", number
        text, answer = said(ask, asked(number), **options)
        return text.strip(), answer.choices[0].finish_reason, number

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(served, range(REQUESTS)))
    assert [text for text, _, _ in found] == [alone(number) for number in range(REQUESTS)]
    assert {reason for _, reason, _ in found} <= {"", "stop", "length"}
    assert metric(address, "glimpse_batch_size_count") < REQUESTS  # some were answered together


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def test_usage_counts_visual_tokens_before_and_after(address: str) -> None:
    usage = said(client(address), asked(0), extra_body={"retention": 0.25})[1].usage
    assert usage.visual_tokens == {"before": 256, "after": 64}
    assert usage.prompt_tokens > 256 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert said(client(address), asked(4))[1].usage.visual_tokens == {"before": 0, "after": 0}
    pieces = list(client(address).chat.completions.create(model="tiny", messages=asked(0), stream=True))  # type: ignore[call-overload]
    assert pieces[-1].usage.visual_tokens["before"] == 256 and pieces[-1].choices[0].finish_reason == "stop"


def test_a_draw_with_a_seed_is_the_same_alone_and_among_others(address: str) -> None:
    ask = client(address)

    def drawn(seed: int) -> str:
        return said(ask, asked(0), temperature=2.0, seed=seed)[0]

    alone = [drawn(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(drawn, range(8))) == alone
    assert len(set(alone)) > 1
    assert said(ask, asked(0), temperature=0)[0] == said(ask, asked(0))[0]


def test_a_stop_and_a_length_end_an_answer(address: str) -> None:
    ask = client(address)
    whole, _ = said(ask, asked(0))
    first, rest = whole[:3], whole[3:5]
    cut, answer = said(ask, asked(0), stop=[rest])
    assert cut == first and answer.choices[0].finish_reason == "stop"
    pieces = ask.chat.completions.create(model="tiny", messages=asked(0), stop=[rest], stream=True)  # type: ignore[call-overload]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == first
    assert said(ask, asked(0), max_tokens=1)[1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("url", "said_of_it"),
    [
        ("file:///etc/passwd", "never read"),
        ("http://127.0.0.1:1/a.png", "fetches no addresses"),
        ("data:image/png;base64,AAAA", "not a readable image"),
    ],
)
def test_a_bad_image_is_refused_and_the_server_goes_on(address: str, url: str, said_of_it: str) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]}
    ]
    status, message = refused(lambda: said(client(address), messages))
    assert status == 400 and said_of_it in message
    assert said(client(address), asked(0))[0]


def test_wrong_requests_get_their_status_and_a_reason(address: str) -> None:
    ask = client(address)
    wrong: Any = {"messages": asked(0), "model": "other"}
    assert refused(lambda: ask.chat.completions.create(**wrong))[0] == 400
    assert "`n`" in refused(lambda: said(ask, asked(0), n=2))[1]
    assert "no field 'budget'" in refused(lambda: said(ask, asked(0), extra_body={"budget": 3}))[1]
    status, message = refused(lambda: said(ask, asked(0), extra_body={"retention": 1.5}))
    assert status == 400 and "1.5" in message
    status, message = refused(lambda: said(ask, asked(0), extra_body={"threshold": 0.5}))
    assert status == 400 and "KeepRatio" in message
    large: Any = [{"role": "user", "content": "x" * 2**21}]
    assert refused(lambda: said(ask, large))[0] == 413
    long: Any = [{"role": "user", "content": "heart " * 5000}]
    status, message = refused(lambda: said(ask, long))
    assert status == 400 and "longest context" in message


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"messages": 1}', "é".encode("latin-1")])
def test_a_body_that_is_no_request_is_an_error_of_the_client(address: str, content: bytes) -> None:
    request = urllib.request.Request(f"{address}/v1/chat/completions", content, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400
    assert json.loads(error.value.read())["error"]["message"]


def test_routes_of_transformers_that_load_models_are_gone(address: str) -> None:
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/completions", "/docs", "/openapi.json"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(address + path, b"{}"))
        assert error.value.code in (404, 405)
    assert json.loads(urllib.request.urlopen(f"{address}/health").read()) == {"status": "ok"}
    assert [each.id for each in client(address).models.list()] == ["tiny"]


class Slow:
    """A model whose steps wait for a sign."""

    def __init__(self, model: gl.PrunedVLM) -> None:
        self.go, self.steps = threading.Event(), 0
        self.model = model
        self.real = model.forward

    def __enter__(self) -> Slow:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            self.go.wait(20)
            return self.real(*args, **kwargs)

        self.model.forward = forward  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        del self.model.forward


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_full_queue_refuses_and_an_answer_that_takes_too_long_ends() -> None:
    model = model_of()
    with running(app(model, max_waiting=2, timeout=3.0)) as address, Slow(model) as slow, ThreadPoolExecutor(3) as pool:
        ask = client(address)
        waiting = [pool.submit(lambda: refused(lambda: said(ask, asked(0)))) for _ in range(2)]
        until(lambda: slow.steps > 0)
        status, message = refused(lambda: said(ask, asked(0)))
        assert status == 503 and "2 places" in message
        assert [one.result()[0] for one in waiting] == [504, 504]
        slow.go.set()
        assert said(ask, asked(0))[0]


def test_a_client_that_leaves_frees_its_place() -> None:
    model = model_of()
    for stream in (False, True):
        with running(app(model, max_waiting=1)) as address, Slow(model) as slow:
            host, port = address.removeprefix("http://").split(":")
            body = json.dumps({"messages": asked(0), "stream": stream}).encode()
            leaving = socket.create_connection((host, int(port)))
            leaving.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            )  # fmt: skip
            until(lambda slow=slow: slow.steps > 0)
            assert refused(lambda address=address: said(client(address), asked(0)))[0] == 503
            leaving.close()
            time.sleep(0.5)
            steps = slow.steps
            slow.go.set()
            assert said(client(address), asked(4), max_tokens=1)[0]
            assert slow.steps <= steps + 3  # its answer was not written to its end


def test_a_batch_that_fails_is_answered_one_by_one() -> None:
    model = model_of()
    real = model.prefill

    def prefill(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 1:
            raise RuntimeError("out of memory")
        return real(*args, **kwargs)

    model.prefill = prefill  # type: ignore[method-assign]
    with running(app(model, wait=0.2)) as address, ThreadPoolExecutor(4) as pool:
        assert all(text for text, _ in pool.map(lambda number: said(client(address), asked(number)), range(4)))
    model.prefill = lambda **_: 1 / 0  # type: ignore[method-assign, assignment]
    with running(app(model)) as address:
        status, message = refused(lambda: said(client(address), asked(0)))
        assert status == 500 and "division" not in message  # what went wrong inside is not the client's business
        pieces = client(address).chat.completions.create(model="tiny", messages=asked(0), stream=True)  # type: ignore[call-overload]
        with pytest.raises(Exception, match="The model failed on this request"):
            list(pieces)


def test_an_answer_ends_where_the_checkpoints_own_settings_end_it() -> None:
    model = model_of()
    model.generation_config.max_time = 1e-6
    with running(app(model, timeout=5.0)) as address:
        text, answer = said(client(address), asked(0))
        assert text and answer.choices[0].finish_reason == "length"


def test_the_key_is_asked_for(model: gl.PrunedVLM) -> None:
    with running(app(model, api_key="secret")) as address:
        assert refused(lambda: said(client(address, api_key="other"), asked(0)))[0] == 401
        assert refused(lambda: client(address).models.list())[0] == 401
        assert said(client(address, api_key="secret"), asked(0))[0]


def test_a_full_model_is_served_and_has_no_budget() -> None:
    with running(app(gl.PrunedVLM(gl.load_backbone("glimpse-tiny")))) as address:
        text, answer = said(client(address), asked(0))
        assert text and answer.usage.visual_tokens == {"before": 256, "after": 256}
        assert "prunes nothing" in refused(lambda: said(client(address), asked(0), extra_body={"retention": 0.1}))[1]


def test_the_command_reads_a_recipe_and_its_budget() -> None:
    options = ["--backbone", "glimpse-tiny", "--recipe", "attention_rank", "--retention", "0.5", "--name", "tiny"]
    with running(app_of(arguments().parse_args(options))) as address:
        assert said(client(address), asked(0))[1].usage.visual_tokens == {"before": 256, "after": 128}
    own = ["--backbone", "glimpse-tiny", "--recipe", "methods/fastv", "--name", "tiny"]
    with running(app_of(arguments().parse_args(own))) as address:  # without --retention the recipe's own
        assert said(client(address), asked(0))[1].usage.visual_tokens == {"before": 256, "after": int(0.11 * 256)}
    with pytest.raises(gl.GlimpseError, match="nothing is pruned"):
        app_of(arguments().parse_args(["--backbone", "glimpse-tiny", "--retention", "0.5"]))
    with pytest.raises(gl.GlimpseError, match="got both"):
        app_of(arguments().parse_args(["--backbone", "glimpse-tiny", "--recipe", "x", "--pruner", "y"]))


def test_the_command_of_the_page_serves_until_it_is_asked_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's client gets its answer, and a stream that has begun on SIGTERM ends as it would."""
    (printed,) = [command for command in COMMANDS if command.startswith("serve ")]
    command = [sys.executable, "-m", "glimpse_lightning", *printed.replace("8000", "0").split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "running on" in line)
        address = line.partition("running on ")[2].split()[0]
        (block,) = [block for block in code("deploy.md") if "OpenAI" in block]
        exec(compile(block.replace("http://127.0.0.1:8000", address), "deploy.md", "exec"), {})
        assert capsys.readouterr().out == "heart B {'before': 256, 'after': 64}\n"
        pieces = client(address).chat.completions.create(
            model="glimpse-tiny", messages=asked(4), max_tokens=64, stream=True
        )  # type: ignore[call-overload]
        first = next(iter(pieces))
        process.send_signal(signal.SIGTERM)
        assert [*pieces][-1].choices[0].finish_reason in ("stop", "length") and first
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_names_of_transformers_that_are_used_are_there() -> None:
    """Its serving module moves; `setup.cfg` takes a range of versions."""
    from transformers.cli.serving import chat_completion, model_manager, server, utils

    names = {
        chat_completion.ChatCompletionHandler: ("_resolve_model", "_build_completion", "_build_chunk_sse"),
        model_manager.ModelManager: ("process_model_name", "load_model_and_processor", "get_gen_models"),
        server: ("build_server",),
        utils: (
            "GenerationState",
            "InferenceThread",
            "ReasoningText",
            "build_response_parser",
            "response_events_to_chunks",
        ),
    }
    for owner, used in names.items():
        assert not [name for name in used if not hasattr(owner, name)]
    assert asyncio.iscoroutinefunction(chat_completion.ChatCompletionHandler.handle_request)
