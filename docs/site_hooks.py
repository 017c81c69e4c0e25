"""Hooks of the site (mkdocs.yml): pages from outside docs/, files that pages link to, and the API reference.

Links in the repository are relative to the file that holds them, so that they work in any checkout. On the site, docs/
is the root. Every file that a page links to is added at its path in the repository, and links are rewritten to where
their target lies. So no link needs the address of a public repository.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import relpath
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import glimpse_lightning as gl

ROOT = Path(__file__).parents[1]
FRONT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages of the site that lie outside docs/ and are named in its navigation."""
LINK = re.compile(r"(\]\(\s*)([^)#\s:]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):<code>(~?)\.*([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of :data:`FRONT`, every file that a page links to, directly or not, and the reference."""
    waiting = [*(ROOT / name for name in FRONT), *Path(config.docs_dir).rglob("*.md")]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
        new = set(linked(path)) - known if path.suffix == ".md" else set()
        known |= new
        waiting += new
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def place(path: Path) -> str:
    """Path on the site of a file of the repository."""
    return path.relative_to(ROOT).as_posix().removeprefix("docs/")


def linked(page: Path) -> Iterator[Path]:
    """Files of the repository that a page links to."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / match[2]).resolve()
        if target.is_file() and target.is_relative_to(ROOT):
            yield target


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from their place in the repository to their place on the site."""
    source = Path(page.file.abs_src_path or "")
    if page.file.src_uri.startswith("reference/"):
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match[2]).resolve()
        if not target.is_file():
            return match[0]  # mkdocs reports it
        return match[1] + relpath(place(target), str(Path(page.file.src_uri).parent)) + match[3]

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name other objects by Sphinx roles; show the name alone, shortened where ``~`` says so."""
    return ROLE.sub(lambda match: f"<code>{match[2].rpartition('.')[2] if match[1] else match[2]}</code>", html)


def reference() -> dict[str, str]:
    """Pages of the API reference by name: one of all public classes and functions, and one for each shelf."""
    shelves = {name: getattr(gl, name) for name in gl.__all__ if isinstance(getattr(gl, name), ModuleType)}
    public = [getattr(gl, name) for name in gl.__all__ if name not in shelves]
    pages = {"gl": _page("Public names", "`import glimpse_lightning as gl`", public)}
    for name, module in shelves.items():
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        objects = [getattr(module, each) for each in names]
        mine = [each for each in objects if getattr(each, "__module__", "").startswith(module.__name__)]
        if mine:
            pages[name] = _page(name.capitalize(), inspect.getdoc(module) or "", mine)
    return pages


def _page(title: str, introduction: str, objects: list[Any]) -> str:
    documented = [each for each in objects if inspect.isclass(each) or inspect.isfunction(each)]
    entries = [f"::: {each.__module__}.{each.__qualname__}" for each in documented]
    return "\n\n".join([f"# {title}", introduction, *entries, ""])
