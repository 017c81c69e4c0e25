"""The page: a picture, questions about it, methods and a budget; answers, tables and kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from glimpse_lightning.backbones.embedded import EMBEDDED, TINY
from glimpse_lightning.data.dense_glyph_vqa import DenseGlyphVQA
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.images import decode_image
from glimpse_lightning.demo.answers import FULL, Methods, Shown
from glimpse_lightning.runtime.errors import GlimpseError

TITLE = "Which tokens does the question need?"
OWN, RETENTION, THRESHOLD = "each method's own", "share of tokens", "threshold"
COLUMNS = ["method", "answer", "as with all tokens", "tokens kept", "KV cache", "prefill FLOPs", "seconds"]
MAX_FILE, MAX_PIXELS = 20 * 2**20, 40_000_000
EXAMPLES = 3
CONCURRENCY = "model"
"""Name of the queue in which all questions wait, one at a time."""


def sent(payload: Any) -> str | None:
    """The file of an upload, as it was sent; Gradio's own function would decode it, and fail without a sentence."""
    return None if payload is None else payload.path


class Asked:
    """What the page's button does.

    Args:
        methods: the methods that the page offers.
    """

    def __init__(self, methods: Methods) -> None:
        self.methods = methods

    def __call__(
        self, path: str | None, first: str, second: str, names: Sequence[str], budget: str, value: float
    ) -> tuple[str, str, list[tuple[Image, str]]]:
        """A table for each question, and pictures of what was kept. Where the visitor has to mend something, a sentence
        about it stands in the place of the first table.

        Args:
            path: file of the picture, within Gradio's folder of uploads.
            first, second: the questions; the second may be empty.
            names: the methods to compare.
            budget: ``OWN``, ``RETENTION`` or ``THRESHOLD``.
            value: the budget, in [0, 1].
        """
        try:
            return self._answered(path, first, second, names, budget, value)
        except GlimpseError as error:
            return f"<p role='alert'><strong>{escape(str(error))}</strong></p>", "", []

    def _answered(
        self, path: str | None, first: str, second: str, names: Sequence[str], budget: str, value: float
    ) -> tuple[str, str, list[tuple[Image, str]]]:
        image = picture(path)
        questions = [text for text in (first.strip(), second.strip()) if text]
        if not questions:
            raise GlimpseError("There is no question yet: write one about the picture.")
        budgets = {RETENTION: {"retention": value}, THRESHOLD: {"threshold": value}}.get(budget, {})
        tables: list[str] = []
        pictures: list[tuple[Image, str]] = []
        for question in questions:
            shown = self.methods.ask(image, question, names, **budgets)
            tables.append(table(question, shown))
            pictures += [pair for each in shown for pair in overlays(each, question)]
        return tables[0], "".join(tables[1:]), pictures


def picture(path: str | None) -> Image:
    """The uploaded picture, as upright RGB.

    Raises:
        GlimpseError: where there is none, or it cannot be read.
    """
    if path is None:
        raise GlimpseError("There is no picture yet: choose a file, or one of the examples.")
    return decode_image(Path(path).read_bytes(), "The picture", MAX_PIXELS)


def table(question: str, shown: Sequence[Shown]) -> str:
    """HTML of a question and of the methods' answers, the full model's first; all texts are escaped."""
    rows = [COLUMNS, *(row(each, shown[0]) for each in shown)]
    cells = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in each)
        for tag, each in zip(("th", *["td"] * len(shown)), rows, strict=True)
    ]
    return f"<h3>{escape(question)}</h3><table>" + "".join(f"<tr>{each}</tr>" for each in cells) + "</table>"


def row(shown: Shown, full: Shown) -> list[str]:
    """The line of a method in the table, which says whether it answers as the ``full`` model does."""
    if shown.counts is None:
        return [shown.method, shown.text, "", "", "", "", ""]
    left = shown.stages[-1][1] if shown.stages else shown.total
    same = "" if shown.method == FULL else "yes" if shown.text == full.text else "no"
    share = left / max(1, shown.total)
    return [
        shown.method, shown.text, same, f"{left} of {shown.total} ({share:.1%})",
        f"{shown.counts.kv / max(1, shown.total):.1%}", f"{shown.counts.flops:.1%}", f"{shown.seconds:.2f}",
    ]  # fmt: skip


def overlays(shown: Shown, question: str) -> list[tuple[Image, str]]:
    """Pictures of what a method kept after each stage, with captions."""
    found = []
    for (layer, left), image in zip(shown.stages, shown.overlays, strict=True):
        where = "before the language model" if layer < 0 else f"after layer {layer}"
        found.append((image, f"{shown.method}, {where}: {left} of {shown.total} · {question}"))
    return found


def build(methods: Methods, name: str) -> gr.Blocks:
    """The page.

    Args:
        methods: the methods that it offers.
        name: name of the backbone.
    """
    asked = Asked(methods)
    with gr.Blocks(
        title="Which tokens does the question need?", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(f"# Which tokens does the question need?\n{about(name)}")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(label="Picture", sources=["upload", "clipboard"], type="filepath", height=360)
                image.preprocess = sent  # type: ignore[method-assign]  # not a subclass: Gradio writes a file for each
                first = gr.Textbox(label="Question", elem_id="first")
                second = gr.Textbox(label="Another question about the same picture", elem_id="second")
                names = gr.CheckboxGroup(methods.names, value=methods.names[:2], label="Methods", elem_id="methods")
                budget = gr.Radio([OWN, RETENTION, THRESHOLD], value=RETENTION, label="Budget", elem_id="budget")
                value = gr.Slider(
                    0.01, 1.0, value=0.2, step=0.01, label="Share of tokens, or threshold", elem_id="value"
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3):
                tables = [gr.HTML(elem_id=f"table_{number}") for number in range(2)]
                pictures = gr.Gallery(
                    label="Kept tokens", columns=2, object_fit="contain", elem_id="kept", format="png"
                )
        inputs = [image, first, second, names, budget, value]
        gr.on(
            [button.click, first.submit, second.submit, value.change], asked, inputs, [*tables, pictures],
            concurrency_id=CONCURRENCY, concurrency_limit=1, trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        if found := examples(name):
            gr.Examples(found, [image, first, second], label="Examples")
    return page


def about(name: str) -> str:
    """What a visitor has to know about the model."""
    if name not in EMBEDDED:
        return (
            f"Backbone: `{name}`. The first row answers with all visual tokens, the others with those that they keep."
        )
    pages = "GlyphVQA" if name == TINY else "dense GlyphVQA"
    return (
        f"Backbone: `{name}`, a small model that ships with glimpse_lightning. It knows the pages of {pages} and "
        "nothing else: ask about the examples below, not about photographs."
    )


def examples(name: str) -> list[list[Any]]:
    """Pages of the model's own benchmark, each with two questions; none for other models."""
    if name not in EMBEDDED:
        return []
    data = (GlyphVQA if name == TINY else DenseGlyphVQA)("val", size=2 * EXAMPLES, questions_per_image=2)
    pairs = [(data[2 * number], data[2 * number + 1]) for number in range(EXAMPLES)]
    return [[one.images[0], one.question, other.question] for one, other in pairs]
