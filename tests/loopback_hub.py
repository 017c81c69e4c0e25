"""A hub of models on this machine, which speaks as much of the Hub's interface as an upload and a download need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "1" * 40


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Address of a hub whose repositories are ``folder/OWNER/NAME``; ``folder/requests.jsonl`` lists its uploads."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Hub(BaseHTTPRequestHandler):
    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self.path.partition("?")[0]):
            return self._about(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?", self.path.partition("?")[0]):
            entry = {"type": "file", "oid": "0"}
            files = self._files(found[1]).items()
            return self._send(200, [entry | {"size": len(data), "path": name} for name, data in files])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            data = self._files(found[1]).get(found[2])
            code = "EntryNotFound" if data is None else ""
            return self._send(404 if data is None else 200, data or b"", {"X-Error-Code": code} if code else {})
        known = (self.folder / "/".join(self.path.removeprefix("/api/models").split("/")[1:3])).is_dir()
        return self._send(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with (self.folder / "requests.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"path": self.path, "body": body}) + "\n")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            return self._send(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/\w+", self.path):
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            files = json.loads(body)["files"]
            return self._send(200, {"files": [mode | {"path": each["path"]} for each in files]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/\w+", self.path.partition("?")[0]):
            for each in map(json.loads, body.splitlines()):
                if each["key"] == "file":
                    path = self.folder / found[1] / each["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(each["value"]["content"]))
            address = f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}"
            return self._send(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})
        return self._send(200, {"errors": [], "warnings": []})  # the check of a card's metadata

    def _about(self, name: str) -> None:
        if not (self.folder / name).is_dir():
            return self._send(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        card = self._files(name).get("README.md", b"").decode()
        licence = re.search(r"^license: (.+)$", card, flags=re.MULTILINE)
        about = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
        about |= {"siblings": [{"rfilename": file} for file in self._files(name)]}
        return self._send(200, about | ({"cardData": {"license": licence[1]}} if licence else {}))

    def _files(self, name: str) -> dict[str, bytes]:
        root = self.folder / name
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        all_headers = {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        all_headers |= {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'} | (headers or {})
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
