"""The identity of a run, by the content of its inputs: names and paths may later stand for other content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.runtime.run_folder import CONFIG
from glimpse_lightning.runtime.whole_files import write_text

INPUTS = "inputs.json"
"""File of a run's folder: digests of the files that its configuration names, by path."""

NAMES = ("path", "config", "pruner", "backbone", "ckpt_path")
"""Keys of a configuration whose values may be files or folders that a run reads."""

WEIGHTS = (
    "model.backbone", "model.after_layer", "model.scorer", "model.stages", "model.pruner", "model.objective",
    "data.train",
)  # fmt: skip
"""Keys of a configuration on which trained weights depend. All others may differ in a test of the weights."""

DEFAULTED = ("model.processor", "model.source.revision", "model.pruner_source.revision")
"""Further such keys, with defaults: where one is left out, its default counts, not the value in training."""

WITHOUT_WEIGHTS = ("policy", "reducer", "early_kv", "positions")
"""Keys of a stage that may differ."""

_WHOLE, _END = 64 * 2**20, 2**20


def digest(path: Path) -> str:
    """A digest of a file, or of all files of a folder with their names.

    Files above 64 MiB count by size, time of change, first and last MiB, since reading a backbone's weights takes
    seconds.
    """
    found = blake2b(digest_size=16)
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        about = file.stat()
        found.update(str(file.relative_to(path)).encode(errors="surrogateescape"))
        found.update(_of_file(file.resolve(), about.st_size, about.st_mtime_ns))
    return found.hexdigest()


@lru_cache(maxsize=4096)  # an ablation asks once for each cell
def _of_file(path: Path, size: int, changed: int) -> bytes:
    with path.open("rb") as content:
        if size <= _WHOLE:
            return blake2b(content.read()).digest()
        ends = content.read(_END)
        content.seek(-_END, 2)
        return blake2b(f"{size} {changed}".encode() + ends + content.read()).digest()


def inputs(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of all files and folders that a resolved configuration names, by path."""
    return {str(path): digest(path) for path in dict.fromkeys(_named(config))}


def _named(value: Any) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key in NAMES and isinstance(each, str) and Path(each).exists():
                yield Path(each)
            else:
                yield from _named(each)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each)


def write_inputs(folder: Path, config: Mapping[str, Any]) -> None:
    """Record, in a run's ``folder``, the digests of the files that it reads."""
    write_text(folder / INPUTS, json.dumps(inputs(config), indent=1) + "\n")


def changed_since(folder: Path, key: str | None = None) -> list[str]:
    """Paths whose content differs from what the run in ``folder`` read; none for runs without recorded digests.

    Args:
        key: dotted part of the configuration that counts; ``None``: all of it.
    """
    saved = folder / INPUTS
    if not saved.is_file() or not (folder / CONFIG).is_file():
        return []
    before = json.loads(saved.read_text(encoding="utf-8"))
    config: Any = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    now = inputs({"": _part(config, key) if key else config})
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path) and (not key or path in now))


def differences(trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings by which two configurations would end with different weights, as ``key: trained != wanted``."""
    found = [line for key in WEIGHTS for line in _differences(_part(trained, key), _part(wanted, key), key)]
    pairs = {key: (_part(trained, key) or None, _part(wanted, key) or None) for key in DEFAULTED}
    return found + [f"{key}: {one} != {other}" for key, (one, other) in pairs.items() if one != other]


def _part(config: Any, key: str) -> Any:
    """A part of a configuration by its dotted name; ``None`` where there is none."""
    for name in key.split("."):
        config = (config or {}).get(name)
    return config


def _differences(trained: Any, wanted: Any, where: str) -> Iterator[str]:
    if wanted is None or trained == wanted or _same_file(trained, wanted):  # a test takes settings that it leaves out
        return
    if isinstance(trained, Mapping) and isinstance(wanted, Mapping):
        # A key that one of them lacks was made by another version, which had no such option.
        for key in trained.keys() & wanted.keys() - {*WITHOUT_WEIGHTS}:
            yield from _differences(trained[key], wanted[key], f"{where}.{key}")
    elif isinstance(trained, list) and isinstance(wanted, list) and len(trained) == len(wanted):
        for index, pair in enumerate(zip(trained, wanted, strict=True)):
            yield from _differences(*pair, f"{where}.{index}")
    else:
        yield f"{where}: {_short(trained)} != {_short(wanted)}"


def _same_file(one: Any, other: Any) -> bool:
    """Whether two texts name files, or folders, of one content."""
    paths = [Path(each) for each in (one, other) if isinstance(each, str)]
    return len(paths) == 2 and all(path.exists() for path in paths) and digest(paths[0]) == digest(paths[1])


def _short(value: Any) -> str:
    named = isinstance(value, Mapping) and "class_path" in value
    return value["class_path"].rpartition(".")[2] if named else str(value)
