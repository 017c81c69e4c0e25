"""The judge against a local server that answers, stalls, errors and lies."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glimpse_lightning.rewards import CombinedReward, Judge, JudgeError, RewardFacts
from glimpse_lightning.runtime.errors import GlimpseError


class Stub(ThreadingHTTPServer):
    """Replies from a script, then with its last entry: text = a completion, number = a status, or what it says."""

    daemon_threads = True

    def __init__(self, script: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        server = self.server
        server.times.append(time.monotonic())
        server.headers.append(dict(self.headers))
        server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        reply = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        if reply == "<stall>":
            time.sleep(1.5)
            return
        if isinstance(reply, int):
            self.send_response(reply)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        completion = json.dumps({"choices": [{"message": {"content": reply}}]})
        body = (reply[4:] if str(reply).startswith("raw ") else completion).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 100 * (reply == "raw <cut off>")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def stub() -> Iterator[Any]:
    servers: list[Stub] = []

    def start(*script: Any) -> tuple[Stub, str]:
        server = Stub(list(script))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge(endpoint: str, **kwargs: Any) -> Judge:
    return Judge(endpoint, "m", **{"cache": None, "timeout": 0.4, "wait": 0.01, "rate": 1000.0, "attempts": 3} | kwargs)


def test_a_judge_that_answers(stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, endpoint = stub("Score: 0.75")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    one = judge(endpoint, cache=str(tmp_path))
    assert one("what {answer}?", "blue", "azure") == 0.75
    (request,) = server.requests
    assert (request["temperature"], request["model"]) == (0.0, "m")
    assert "azure" in request["messages"][0]["content"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert one("what {answer}?", "blue", "azure") == judge(endpoint, cache=str(tmp_path))(
        "what {answer}?", "blue", "azure"
    )
    assert len(server.requests) == 1  # the rest came from the cache, by another process's judge too
    assert one.counts == {"calls": 1, "cached": 1, "retries": 0, "failed": 0}
    for file in tmp_path.rglob("*.json"):
        file.write_text('{"score"')
    assert one("what {answer}?", "blue", "azure") == 0.75
    assert len(server.requests) == 2  # a damaged entry is asked for again


@pytest.mark.parametrize("bad", ["<stall>", 500, 429, "raw <html>", 'raw {"choices": []}', "raw <cut off>"])
def test_what_passes_is_tried_again(stub: Any, bad: Any) -> None:
    server, endpoint = stub(bad, "score: 1")
    one = judge(endpoint)
    assert one("q", "a", "r") == 1
    assert (len(server.requests), one.counts["retries"], one.counts["failed"]) == (2, 1, 0)


@pytest.mark.parametrize("lie", ["excellent", "score: 3", "score: -1", "score: 0.1 score: 0.9", "0.7", ""])
def test_a_lie_is_never_a_score(stub: Any, lie: str) -> None:
    server, endpoint = stub(lie)
    one = judge(endpoint)
    with pytest.warns(UserWarning, match="The answer is left out"):
        assert math.isnan(one("q", "a", "r"))
    assert (len(server.requests), one.counts["failed"]) == (3, 1)
    with pytest.raises(JudgeError, match="no score after 3 attempts"):
        judge(endpoint, on_failure="raise")("q", "a", "r")


def test_what_cannot_pass_is_not_tried_again(stub: Any) -> None:
    server, endpoint = stub(401)
    with pytest.raises(JudgeError, match="HTTP status 401"):
        judge(endpoint, on_failure="raise")("q", "a", "r")
    assert len(server.requests) == 1


def test_no_server() -> None:
    with pytest.raises(JudgeError, match="refused"):
        judge("http://127.0.0.1:9", on_failure="raise")("q", "a", "r")


def test_failures_are_not_cached(stub: Any, tmp_path: Path) -> None:
    _, endpoint = stub("?", "score: 0.5")
    one = judge(endpoint, cache=str(tmp_path), attempts=1)
    with pytest.warns(UserWarning, match="left out"):
        assert math.isnan(one("q", "a", "r"))
    assert one("q", "a", "r") == 0.5


def test_waits_grow_and_calls_are_spaced(stub: Any) -> None:
    server, endpoint = stub(500, 500, "score: 1")
    judge(endpoint, wait=0.1)("q", "a", "r")
    first, second = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert first >= 0.1 and second >= 0.2
    server, endpoint = stub("score: 1")
    judge(endpoint, rate=20.0).many([{"question": "q", "answer": str(i), "reference": "r"} for i in range(5)])
    assert max(server.times) - min(server.times) >= 0.15


def test_many_answers_one_failure_among_them(stub: Any) -> None:
    server, endpoint = stub("score: 1", "nonsense", "score: 1")
    reward = CombinedReward(
        {"judge": {"weight": 2.0, "endpoint": endpoint, "model": "m", "cache": None, "attempts": 1, "parallel": 1}}
    )
    with pytest.warns(UserWarning, match="left out"):
        out = reward([RewardFacts("q", text, ["r"]) for text in ("a", "b", "c", "a")])
    assert [math.isnan(value) for value in out.total] == [False, True, False, False]
    assert out.total[0] == out.total[3] == 2.0
    assert len(server.requests) == 3  # equal answers are asked about once
    assert (reward.counts["judge/failed"], reward.counts["judge/calls"]) == (1, 3)


@pytest.mark.parametrize(
    "options", [{"endpoint": "localhost"}, {"prompt": "?"}, {"on_failure": "zero"}, {"attempts": 0}, {"timeout": 0}]
)
def test_settings_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(GlimpseError, match="Expected the judge's"):
        Judge(**{"endpoint": "http://x/v1", "model": "m"} | options)
