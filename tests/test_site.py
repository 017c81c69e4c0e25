"""The built site in a headless Chromium: no broken link or anchor, every picture shown, and a search that finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browsers import headless

SITE = Path(__file__).parents[1] / "build" / "site"
SEEN = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(each => each.id),
    links: [...document.querySelectorAll('a[href]')].map(each => each.href),
    hidden: [...document.images].filter(each => !each.naturalWidth).map(each => each.src),
})"""
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not (SITE / "index.html").is_file():
        pytest.skip("There is no build/site; `mkdocs build` makes it.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with headless("the site") as browser:
        yield browser.new_page()


def test_links_lead_somewhere_and_pictures_are_shown(page: Any, address: str) -> None:
    failed: list[str] = []
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    names = sorted(path.relative_to(SITE).as_posix().removesuffix("index.html") for path in SITE.rglob("index.html"))
    seen = {}
    for name in names:
        page.goto(address + name)
        seen[address + name] = page.evaluate(SEEN)
    assert {"", "cli/", "reference/scorers/", "benchmarks/"} <= set(names)
    broken = [
        f"{url}: {link}" for url, found in seen.items() for link in found["links"] if not leads(link, address, seen)
    ]
    hidden = [f"{url}: {picture}" for url, found in seen.items() for picture in found["hidden"]]
    assert not (broken or hidden or failed), "\n".join([*broken, *hidden, *failed])


def leads(link: str, address: str, seen: dict[str, Any]) -> bool:
    """Whether a link leaves the site, names a file, or a page and a place on it."""
    if not link.startswith(address):
        return True
    url, _, anchor = link.partition("#")
    if url in seen:
        return not anchor or anchor in seen[url]["ids"]
    return (SITE / url.removeprefix(address)).is_file()


def test_search_finds_a_scorer(page: Any, address: str) -> None:
    page.goto(address)
    page.locator(".md-search__input").fill("VIP")
    page.wait_for_selector(".md-search-result__item a")
    found = page.eval_on_selector_all(".md-search-result__item a", "all => all.map(each => each.href)")
    assert any("reference/scorers/" in link for link in found), found


def test_names_of_the_reference_have_their_arguments(page: Any, address: str) -> None:
    page.goto(f"{address}reference/scorers/#glimpse_lightning.scorers.vip.VIP")
    text = page.locator("article").inner_text()
    assert "after_layer" in text or "attention_dim" in text
    assert ":class:" not in text and ":func:" not in text
