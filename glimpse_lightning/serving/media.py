"""Images that clients name: data URLs, and where allowed addresses of public servers.

Nothing of the machine can be read by a request: no path and no ``file:`` is opened, every address of a host has to be
public, and the connection goes to the address that was checked, so that a second answer of the name server changes
nothing. Every redirect is checked anew; size and time are bounded.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from PIL.Image import Image

from glimpse_lightning.data.images import decode_image
from glimpse_lightning.runtime.errors import BadSampleError
from glimpse_lightning.serving.refusals import RefusedRequestError

REDIRECTS = 3
"""Redirects that are followed."""
SHOWN = 60
"""Characters of an address that an error shows."""
_MOVED = (301, 302, 303, 307, 308)
_CHUNK = 2**16


@dataclass(frozen=True)
class Media:
    """Bounds of the images of requests.

    Attributes:
        allow_http: whether images are fetched from http(s) addresses.
        max_bytes: size of an image file.
        max_pixels: size of an image, checked before it is decoded.
        timeout: seconds in which an image has to be fetched, redirects included.
    """

    allow_http: bool = False
    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    timeout: float = 10.0

    def image(self, url: str, name: str) -> Image:
        """The image at ``url``, as upright RGB; a data URL's type is not read, since its content tells.

        Args:
            url: a data URL or, where allowed, an http(s) address.
            name: what errors call the image.

        Raises:
            RefusedRequestError: for every other address, and for what is no image.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            data = self._of_data_url(url, name)
        elif scheme in ("http", "https"):
            data = self._fetched(url, name)
        else:
            raise RefusedRequestError(
                f"{name}: expected a data URL{' or an http(s) address' if self.allow_http else ''}, but got "
                f"{url[:SHOWN]!r}. Files of the server are never read: send the image as data:image/png;base64,..."
            )
        try:
            return decode_image(data, name, self.max_pixels)
        except BadSampleError as error:
            raise RefusedRequestError(str(error)) from error

    def _of_data_url(self, url: str, name: str) -> bytes:
        head, comma, content = url.partition(",")
        if not comma:
            raise RefusedRequestError(f"{name}: the data URL has no comma, so no content; it begins {url[:SHOWN]!r}.")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(content)
        try:
            return base64.b64decode("".join(unquote_to_bytes(content).decode("ascii").split()), validate=True)
        except (binascii.Error, UnicodeDecodeError) as error:
            raise RefusedRequestError(f"{name}: the data URL is no valid base64 ({error}); encode it again.") from error

    def _fetched(self, url: str, name: str) -> bytes:
        """Content of an address, over connections to public addresses alone."""
        if not self.allow_http:
            raise RefusedRequestError(
                f"{name}: this server fetches no addresses ({url[:SHOWN]!r}); send the image as a data URL, or start "
                "the server with --allow_http."
            )
        deadline = time.monotonic() + self.timeout
        for _ in range(REDIRECTS + 1):
            found = self._answer(url, name, deadline)
            if isinstance(found, bytes):
                return found
            url = found
        raise RefusedRequestError(f"{name}: more than {REDIRECTS} redirects; name the image's own address.")

    def _answer(self, url: str, name: str, deadline: float) -> bytes | str:
        """Content of an address, or the address that it redirects to."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise RefusedRequestError(f"{name}: {url[:SHOWN]!r} is no address ({error}).") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise RefusedRequestError(f"{name}: expected an http(s) address without a user, but got {url[:SHOWN]!r}.")
        try:
            with _Connection(parts, port, public_address(parts.hostname, port, name), deadline) as connection:
                return connection.read(url, name, self.max_bytes)
        except (OSError, http.client.HTTPException) as error:
            reason = "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
            raise RefusedRequestError(f"{name}: {url[:SHOWN]!r} could not be fetched ({reason}).") from error


def public_address(host: str, port: int, name: str) -> str:
    """An address of ``host``, of which all are public.

    Raises:
        RefusedRequestError: where one is not, so that no server behind the firewall can be asked; the address itself is
            not shown, as it would tell what the network looks like.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RefusedRequestError(f"{name}: no such host as {host[:SHOWN]!r}.") from error
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(map(is_public, addresses)):
        raise RefusedRequestError(f"{name}: {host[:SHOWN]!r} is not a public host; send the image as a data URL.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also one of version 4 that is written as version 6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


class _Connection:
    """One request to an address that was checked; nothing is looked up again. It is cut at the deadline, as a server
    that sends a byte now and then would never let a socket time out.
    """

    def __init__(self, parts: SplitResult, port: int, address: str, deadline: float) -> None:
        self.parts, self.port, self.address, self.deadline = parts, port, address, deadline
        assert parts.hostname is not None
        self.http = http.client.HTTPConnection(parts.hostname, port)

    def __enter__(self) -> _Connection:
        connected = socket.create_connection((self.address, self.port), self._left())
        try:
            if self.parts.scheme == "https":
                connected = ssl.create_default_context().wrap_socket(connected, server_hostname=self.parts.hostname)
        except BaseException:
            connected.close()
            raise
        self.http.sock = connected
        self.cut = threading.Timer(self._left(), _shut, [connected])
        self.cut.daemon = True
        self.cut.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut.cancel()
        self.http.close()

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def read(self, url: str, name: str, most: int) -> bytes | str:
        """Content of the answer, or the address of a redirect."""
        path = (self.parts.path or "/") + (f"?{self.parts.query}" if self.parts.query else "")
        self.http.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        answer = self.http.getresponse()
        if answer.status in _MOVED:
            return urljoin(url, answer.headers.get("Location", ""))
        if answer.status != 200:
            raise RefusedRequestError(f"{name}: {url[:SHOWN]!r} answers with status {answer.status}.")
        content = bytearray()
        while True:
            chunk = answer.read1(_CHUNK)
            self._left()  # what a cut connection sends ends early, and is no whole image
            if not chunk:
                return bytes(content)
            content += chunk
            if len(content) > most:
                raise RefusedRequestError(
                    f"{name}: expected at most {most} bytes, but {url[:SHOWN]!r} is larger; scale the image down."
                )


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
