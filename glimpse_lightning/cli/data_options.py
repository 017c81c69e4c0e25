"""Options of ``data``, in flags and recipes: a file of questions may stand in the place of a dataset's class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import Dataset

from glimpse_lightning.cli.recipe_files import read_yaml
from glimpse_lightning.data.glyph_vqa.procedural import Procedural
from glimpse_lightning.data.open_file import class_name
from glimpse_lightning.runtime.errors import GlimpseError

DATASETS = ("train", "val", "test", "predict")

FLAG = re.compile(rf"(--data\.(?:{'|'.join(DATASETS)}))(?:=(.+))?")


def files_as_datasets(args: Sequence[str]) -> list[str]:
    """``args`` in which a file of questions is the ``path`` of the dataset that reads it: JSONL, or Table."""
    out: list[str] = []
    flag = ""
    for arg in args:
        found = FLAG.fullmatch(arg)
        value = found[2] if found else arg if flag else None
        flag, before = (found[1], flag) if found else ("", flag)
        kind = _reader(value) if value else None
        if value is None or kind is None:
            out.append(arg)
            continue
        if not found:
            out.pop()  # the flag alone
        out += [f"{flag or before}={kind}", f"{flag or before}.path={Path(value)}"]
        flag = ""
    return out


def replaced_datasets_anew(args: Sequence[str]) -> list[str]:
    """``args`` in which a dataset that takes the place of a drawn benchmark does not inherit its options.

    The parser keeps those that the new class has, too. Of GlyphVQA's ``split: test, size: 2000``, a table would read a
    split of that name, and no more than 2,000 rows. ``data.group``, the number of questions about one drawn page, is 1
    again.

    Args:
        args: command line with paths of configuration files.
    """
    out: list[str] = []
    kinds: dict[str, str] = {}
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        flag, equals, value = arg.partition("=")
        value = value if equals else after
        chosen = FLAG.fullmatch(flag.removesuffix(".class_path"))
        named = {chosen[1].removeprefix("--data."): value} if chosen else {}
        for name, kind in (_classes(Path(value)) if flag in ("-c", "--config") else named).items():
            if _is_drawn(kinds.get(name, "")) and not _is_drawn(kind):
                out += [f"--data.{name}=null", *(["--data.group=1"] if name == "train" else [])]
            kinds[name] = kind
        out.append(arg)
    return out


def _classes(recipe: Path) -> dict[str, str]:
    """Classes of a recipe's datasets, or files in their place; those that it gives options only keep their class."""
    data = read_yaml(recipe).get("data")
    named = {name: data[name] for name in DATASETS if data.get(name)} if isinstance(data, dict) else {}
    kinds = {name: kind.get("class_path") if isinstance(kind, dict) else kind for name, kind in named.items()}
    return {name: str(kind) for name, kind in kinds.items() if kind}


def _is_drawn(kind: str) -> bool:
    return kind.rpartition(".")[2] in _names_of_subclasses(Procedural)


def _reader(value: str, folder: Path = Path()) -> str | None:
    """Name of the dataset that reads a file or folder; ``None`` for a class, also where a folder has its name."""
    return None if value in _names_of_subclasses(Dataset) else class_name(str(folder / Path(value).expanduser()))


def _names_of_subclasses(kind: type) -> set[str]:
    found: set[str] = set()
    below: list[type] = kind.__subclasses__()
    for each in below:
        found |= {each.__name__, *_names_of_subclasses(each)}
    return found


def files_as_datasets_in(text: str, folder: Path) -> str:
    """A recipe's text, in which a file of questions under ``data`` is the ``path`` of the dataset that reads it.

    Args:
        text: the recipe.
        folder: folder that its paths are relative to; the parser works in the recipe's own while it reads it.
    """
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the parser names the place
    data = recipe.get("data") if isinstance(recipe, dict) else None
    if not isinstance(data, dict):
        return text
    found = {name: data[name] for name in DATASETS if isinstance(data.get(name), str) and _reader(data[name], folder)}
    for name, path in found.items():
        data[name] = {"class_path": _reader(path, folder), "init_args": {"path": path}}
    return yaml.safe_dump(recipe) if found else text


def check_training_flags(args: Sequence[str]) -> None:
    """Raise where a command other than `fit` gets a flag about batches of training.

    Raises:
        GlimpseError: naming the flag that the command reads.
    """
    for arg in args[1:] if args[0] != "fit" else ():
        if re.match(r"--data\.(batch_size|group)(=|$)", arg):
            raise GlimpseError(
                f"Expected no {arg.partition('=')[0]} with `{args[0]}`, which trains nothing: `--data.eval_batch_size` "
                "is the number of questions in a batch."
            )


def check_single_flags(args: Sequence[str]) -> None:
    """Raise where an image or a question is given twice: the parser would ask about the last one.

    Raises:
        GlimpseError: saying how to ask about several images.
    """
    names = [arg.partition("=")[0] for arg in args]
    for flag in ("--image", "--question"):
        if names.count(flag) > 1:
            raise GlimpseError(
                f"Expected `{flag}` once, but got it {names.count(flag)} times. One question about several images "
                "together: `--image '[a.png, b.png]'`; one question about each: a folder, `--image FOLDER`."
            )


def without_answers(datasets: Any) -> None:
    """Let the datasets of a parsed configuration, which `predict` reads, have no answers; in place."""
    for name in ("predict", "test"):
        options = (datasets.get(name) or {}).get("init_args") or {}
        if "require_answers" in options:
            options["require_answers"] = False
