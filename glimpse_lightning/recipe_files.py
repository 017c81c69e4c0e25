"""The configuration files that a command line names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.packaged_recipes import find_recipe
from glimpse_lightning.run_folder import CONFIG, RECIPE


def with_recipes(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """``args`` with names of packaged recipes replaced by their paths; and all configuration files."""
    out, found = [], []
    expected = False
    for arg in args:
        name = arg if expected else arg.removeprefix("--config=") if arg.startswith("--config=") else None
        if name is not None:
            path = Path(name) if Path(name).is_file() else find_recipe(name)
            found.append(path)
            arg = str(path) if expected else f"--config={path}"
        expected = not expected and arg in ("-c", "--config")
        out.append(arg)
    return out, found


def recipe_name(config_files: Sequence[Path]) -> str:
    """What a run is called: after its last configuration file that is more than a way to train (``trainer:`` alone);
    after the run that this one came from, where a run left the file; else after the folder of a ``config.yaml``.
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
    """The configuration files as they are, one behind the other."""
    texts = [path.read_text(encoding="utf-8") for path in config_files]
    if len(texts) == 1:
        return texts[0]
    return "---\n".join(f"# {path}\n{text}" for path, text in zip(config_files, texts, strict=True))


def names_class(key: str, args: Sequence[str], config_files: Sequence[Path]) -> bool:
    """Whether a flag or file names the class of the model or the data, instead of options of the default one."""
    if any(re.match(rf"--{key}(\.class_path)?(=|$)", arg) for arg in args):
        return True
    return any("class_path" in (read_yaml(path).get(key) or {}) for path in config_files)


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file's mapping.

    Raises:
        GlimpseError: where it holds none.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GlimpseError(f"{path}: not valid YAML: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise GlimpseError(f"{path}: expected a YAML mapping (model: ..., data: ..., trainer: ...).")
    return data or {}
