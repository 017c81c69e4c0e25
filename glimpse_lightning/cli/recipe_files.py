"""The configuration files that a command line names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.cli.packaged_recipes import recipe_file
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.paths import read_text
from glimpse_lightning.runtime.run_folder import CONFIG, RECIPE


def with_recipes(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """``args`` with names of packaged recipes replaced by their paths; and all configuration files."""
    out, found = [], []
    expected = False
    for arg in args:
        name = arg if expected else arg.removeprefix("--config=") if arg.startswith("--config=") else None
        if name is not None:
            path = recipe_file(name)
            found.append(path)
            arg = str(path) if expected else f"--config={path}"
        expected = not expected and arg in ("-c", "--config")
        out.append(arg)
    return out, found


def recipe_name(config_files: Sequence[Path]) -> str:
    """Name of a run: that of its last configuration file that sets more than ``trainer:``; where a run wrote that file,
    the name of that run; for another ``config.yaml``, the name of its folder.
    """
    if not config_files:
        return "run"
    named = [path for path in config_files if set(read_yaml(path)) != {"trainer"}] or config_files
    path = named[-1].resolve()
    if path.name not in (CONFIG, RECIPE):
        return path.stem
    of_run = re.fullmatch(r"(fit|validate|test|predict)_\d+", path.parent.name)
    return path.parent.parent.name if of_run else path.parent.name or path.stem


def recipe_text(config_files: Sequence[Path]) -> str:
    """The text of the configuration files, one after another."""
    texts = [read_text(path) for path in config_files]
    if len(texts) == 1:
        return texts[0]
    return "---\n".join(f"# {path}\n{text}" for path, text in zip(config_files, texts, strict=True))


def names_class(key: str, args: Sequence[str], config_files: Sequence[Path]) -> bool:
    """Whether a flag or file names the class of the model or the data, instead of options of the default one."""
    if any(re.match(rf"--{key}(\.class_path)?(=|$)", arg) for arg in args):
        return True
    return any("class_path" in (read_yaml(path).get(key) or {}) for path in config_files)


def check_vars(args: Sequence[str], config_files: Sequence[Path]) -> None:
    """Raise where ``--vars.NAME`` or a recipe sets a variable that no ``${vars.NAME}`` reads.

    Raises:
        GlimpseError: naming the nearest variable that is read.
    """
    texts = [read_text(path) for path in config_files]
    read = set(re.findall(r"\$\{vars\.([\w-]+)", "\n".join([*texts, *args])))
    given = [found[1] for arg in args if (found := re.match(r"--vars\.([\w-]+)", arg))]
    for flag, value in zip(args, [*args, ""][1:], strict=True):
        if flag == "--vars" or flag.startswith("--vars="):
            mapping = yaml.safe_load(flag.partition("=")[2] or value)
            given += list(mapping) if isinstance(mapping, dict) else []
    for path, text in zip(config_files, texts, strict=True):
        if "${vars." in text:  # a run's config.yaml, all resolved, holds variables and reads none
            given += list(read_yaml(path).get("vars") or {})
    if read - {*given, *(name for path in config_files for name in read_yaml(path).get("vars") or {})}:
        return  # a variable that is read and not set: the parser names it
    for name in given:
        if name not in read:
            where = ", ".join(map(str, config_files)) or "any recipe"
            raise GlimpseError(
                f"Nothing reads `vars.{name}`: there is no ${{vars.{name}}} in {where} or on the command line."
                f"{nearest(name, sorted(read))}"
            )


def texts_aside(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line whose texts (``--question``, ``--data.prompt``) have names in their place, and the texts by name.

    The parser would read free text as YAML (``null``, ``1e3``, ``#5``) or as an interpolation (``${x}``).
    """
    out: list[str] = []
    texts: dict[str, str] = {}

    def named(text: str) -> str:
        name = f"__text_{len(texts)}__"
        texts[name] = text
        return name

    for arg in args:
        flag, equals, value = arg.partition("=")
        if equals and flag in TEXT_FLAGS:
            out.append(f"{flag}={named(value)}")
        else:
            out.append(named(arg) if out and out[-1] in TEXT_FLAGS else arg)
    return out, texts


def given_as_null(args: Sequence[str]) -> set[str]:
    """The flags whose value is ``null``, without their dashes.

    The parser reads a flag within a component's options twice, the second time as the text ``None``.
    """
    pairs = zip(args, [*args[1:], ""], strict=True)
    found = [arg.partition("=")[::2] if "=" in arg else (arg, after) for arg, after in pairs]
    return {flag.removeprefix("--") for flag, value in found if flag.startswith("--") and value == "null"}


TEXT_FLAGS = ("--question", "--data.prompt")


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file's mapping.

    Raises:
        GlimpseError: where it holds none.
    """
    try:
        data = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GlimpseError(f"{path}: not valid YAML: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise GlimpseError(f"{path}: expected a YAML mapping (model: ..., data: ..., trainer: ...).")
    return data or {}
