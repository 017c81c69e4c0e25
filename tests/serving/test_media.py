"""Images that clients name: no file and no inner address is ever read."""

from __future__ import annotations

import base64
import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image

from glimpse_lightning.serving import media
from glimpse_lightning.serving.media import Media, is_public, public_address
from glimpse_lightning.serving.refusals import RefusedRequestError


def png(size: tuple[int, int] = (30, 20)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, "teal").save(content, "PNG")
    return content.getvalue()


class Pages(http.server.BaseHTTPRequestHandler):
    """Addresses of the test's server, by path."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/slow":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # nobody waits that long
                for byte in png():
                    time.sleep(0.05)
                    self.wfile.write(bytes([byte]))
        elif path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif path == "/large":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(200_000))
        elif path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())
        else:
            self.send_response(404)
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose own address counts as public, and no other one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


OPEN = Media(allow_http=True, max_bytes=100_000, timeout=1.0)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:db8::1"],
)  # fmt: skip
def test_inner_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_internet_are_public() -> None:
    assert all(map(is_public, ("8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8")))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "/etc/passwd", "etc/passwd", "FILE:/etc/passwd", "ftp://example.org/a.png", "", "image.png",
     "\\\\host\\share\\a.png", "gopher://127.0.0.1:11211/x", "http+unix://socket", " data:image/png;base64,AAAA"],
)  # fmt: skip
def test_files_and_other_schemes_are_never_read(url: str) -> None:
    with pytest.raises(RefusedRequestError, match="expected a data URL"):
        OPEN.image(url, "image 0")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!!", "no valid base64"),
        ("data:image/png;base64,AAAA", "not a readable image"),
        ("data:,hello", "not a readable image"),
        ("data:image/svg+xml,<svg/>", "not a readable image"),
        ("data:image/png;base64," + base64.b64encode(png()[:60]).decode(), "truncated or damaged"),
        ("data:image/png;base64," + base64.b64encode(png((300, 300))).decode(), "at most 10000 pixels"),
    ],
)
def test_a_broken_data_url_says_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(RefusedRequestError, match="image 0: ") as refused:
        Media(max_pixels=10_000).image(url, "image 0")
    assert said in str(refused.value)


def test_a_data_url_may_be_wrapped_or_quoted() -> None:
    coded = base64.b64encode(png()).decode()
    for content in (coded[:40] + "\n" + coded[40:], coded.replace("+", "%2B").replace("=", "%3D")):
        assert Media().image(f"data:image/png;base64,{content}", "image 0").size == (30, 20)


def test_addresses_are_fetched_only_where_allowed(site: str) -> None:
    assert OPEN.image(f"{site}/image?size=1", "image 0").size == (30, 20)
    assert OPEN.image(f"{site}/to/{site}/to/{site}/image", "image 0").size == (30, 20)
    with pytest.raises(RefusedRequestError, match="--allow_http"):
        Media().image(f"{site}/image", "image 0")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/to/http://localhost.invalid/x", "no such host"),
        ("/to/http://10.0.0.1/x", "not a public host"),
        ("/to/file:///etc/passwd", "expected an http"),
        ("/to/", "redirects"),
        ("/missing", "status 404"),
        ("/large", "at most 100000 bytes"),
        ("/slow", "it took too long"),
    ],
)
def test_what_cannot_be_fetched_says_why(site: str, path: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(RefusedRequestError) as refused:
        OPEN.image(site + path, "image 0")
    assert said in str(refused.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "url", ["http://user:key@example.org/", "http:///x", "http://[::1", "http://example.org:99999/"]
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(RefusedRequestError, match="address"):
        OPEN.image(url, "image 0")


def test_every_address_of_a_host_has_to_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    with pytest.raises(RefusedRequestError, match="not a public host"):
        public_address("example.org", 80, "image 0")


def test_the_connection_goes_to_the_address_that_was_checked(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    port, asked = int(site.rpartition(":")[2]), []
    real = socket.getaddrinfo

    def answers(host: Any, *args: Any, **options: Any) -> Any:
        if host == "rebinding.example":
            asked.append(host)
            return real("127.0.0.1" if len(asked) == 1 else "10.0.0.1", *args, **options)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    assert OPEN.image(f"http://rebinding.example:{port}/image", "image 0").size == (30, 20)
    assert asked == ["rebinding.example"]
