"""The page of `demo` in a headless Chromium: a picture is sent, asked, and shown with what was kept."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import headless

import glimpse_lightning as gl

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
STANDS, ANSWERS = 20.0, 2.0
"""Seconds in which the page stands, and a question is answered, on two quiet cores."""
PATIENCE = 5.0
"""Factor on both for machines with other work."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "glimpse_lightning", "demo", "--port", "0"]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        print(f"the page stands after {time.monotonic() - start:.1f} s")
        assert time.monotonic() - start < PATIENCE * STANDS
        yield re.search(r"http://\S+", line)[0]  # type: ignore[index]
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless("the page") as opened:
        yield opened


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1500})
    opened.goto(address)
    opened.get_by_role("button", name="Ask").wait_for()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, gl.Sample, gl.Sample]:
    data = gl.GlyphVQA("test", size=8, questions_per_image=2)
    path = tmp_path_factory.mktemp("pictures") / "page.png"
    data[0].images[0].save(path)
    return path, data[0], data[1]


def cells(page: Any, number: int = 0) -> list[list[str]]:
    rows = page.locator(f"#table_{number} tr").all()[1:]
    return [[cell.inner_text().strip() for cell in row.locator("td").all()] for row in rows]


def pictures(page: Any) -> list[str]:
    return [each.get_attribute("src") for each in page.locator("#kept .grid-container img").all()]


def ask(page: Any, *questions: str) -> float:
    for name, question in zip(("first", "second"), questions, strict=False):
        page.locator(f"#{name} textarea").fill(question)
    start = time.monotonic()
    page.get_by_role("button", name="Ask").click()
    page.locator("#table_0 h3", has_text=questions[0]).wait_for(timeout=60_000)
    page.locator("#kept .grid-container img").first.wait_for(timeout=60_000)
    return time.monotonic() - start


def test_a_picture_is_asked_and_what_was_kept_is_shown(page: Any, sample: tuple[Path, gl.Sample, gl.Sample]) -> None:
    path, one, other = sample
    page.locator("input[type=file]").set_input_files(path)
    page.locator("img[src*='page.png']").first.wait_for()
    seconds = ask(page, one.question, other.question)
    print(f"two questions, three models: {seconds:.1f} s")
    assert seconds < 2 * PATIENCE * ANSWERS
    first, second = cells(page), cells(page, 1)
    assert [row[0] for row in first] == ["all tokens", "fastv", "divprune"] == [row[0] for row in second]
    assert [first[0][1], second[0][1]] == [one.answers[0], other.answers[0]]
    assert first[1][3] == "51 of 256 (19.9%)"
    shown = pictures(page)
    assert len(shown) == 4
    slider = page.locator("#value input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    slider.blur()
    page.locator("#table_0", has_text="56 of 256 (21.9%)").wait_for(timeout=60_000)
    deadline = time.monotonic() + 10
    while set(pictures(page)) & set(shown) and time.monotonic() < deadline:  # pictures come after the table
        page.wait_for_timeout(50)
    assert len(pictures(page)) == 4
    assert not set(pictures(page)) & set(shown)


@pytest.mark.parametrize(("name", "content"), [("broken.png", b"\x89PNG\r\n\x1a\n broken"), ("text.png", b"hello")])
def test_a_broken_picture_gets_a_sentence(page: Any, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    page.locator(f"img[src*='{name}']").first.wait_for(state="attached")
    page.locator("#first textarea").fill("what is drawn in cyan")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").get_by_text("not a readable image").wait_for(timeout=60_000)


def test_an_empty_question_and_no_picture_get_a_sentence(page: Any, sample: tuple[Path, gl.Sample, gl.Sample]) -> None:
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("There is no picture yet").wait_for(timeout=60_000)
    page.locator("input[type=file]").set_input_files(sample[0])
    page.locator("img[src*='page.png']").first.wait_for()
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("There is no question yet").wait_for(timeout=60_000)
    ask(page, sample[1].question)
    assert cells(page)[0][1] == sample[1].answers[0], "the page goes on"


def test_an_example_fills_the_form(page: Any) -> None:
    page.locator(".gallery-item, tbody tr.tr-body").first.click()
    page.wait_for_function("document.querySelector('#second textarea').value != ''")
    question = page.locator("#first textarea").input_value()
    ask(page, question)
    assert cells(page)[0][0] == "all tokens"
