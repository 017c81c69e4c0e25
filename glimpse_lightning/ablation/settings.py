"""The settings of an ablation, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.cli.settings_file import expecting, read_settings
from glimpse_lightning.runtime.errors import GlimpseError, nearest

MODES = ("fit", "test")
UNNAMED = "pruner"
"""Name of the pruner for methods with ``pruner: true``."""


@dataclass(frozen=True)
class Settings:
    """An ablation: a base recipe, and its changes from cell to cell.

    Attributes:
        name: name of its folder.
        base: recipe (name or file) that every cell starts from.
        mode: ``fit`` (train, then test) or ``test``.
        axes: values by axis: ``methods``, ``retention``, ``layer``, ``backbone``, ``seed``, or any dotted key of the
            recipe; see docs/ablate.md.
        set: dotted keys that are changed in every cell.
        pruner: folder of a saved pruner, for methods that ask for one; or several by name. Methods whose pruner is not
            there are left out.
        floor: name of the method whose accuracy is worth nothing, for methods that name none; ``None`` for no floor.
        limit: number of questions that each cell is tested on; ``None``: the recipe's number.
        devices_per_cell: GPUs that a cell runs on.
        output: parent of the ablation's folder.
        memory_gb: main memory that embedded questions may take, in each process.
    """

    name: str
    base: str
    axes: Mapping[str, list[Any]]
    mode: str = "test"
    set: Mapping[str, Any] = field(default_factory=dict)
    pruner: str | Mapping[str, str] | None = None
    floor: str | None = None
    limit: int | None = None
    devices_per_cell: int = 1
    output: str = "runs/ablations"
    memory_gb: float = 4.0

    @property
    def root(self) -> Path:
        """The ablation's folder."""
        return Path(self.output) / self.name

    @property
    def pruners(self) -> dict[str, str]:
        """Folders of the saved pruners by name."""
        named = self.pruner if isinstance(self.pruner, Mapping) else {UNNAMED: self.pruner}
        return {name: folder for name, folder in named.items() if folder is not None}

    def pruner_of(self, asked: bool | str) -> str | None:
        """The folder that a method's ``pruner: true`` or ``pruner: NAME`` means; ``None`` where there is none."""
        return self.pruners.get(asked_name(asked))

    def left_out(self) -> dict[str, list[str]]:
        """Methods whose saved pruner is not there, by the pruner's name."""
        found: dict[str, list[str]] = {}
        for method in self._methods():
            if method["pruner"] and self.pruner_of(method["pruner"]) is None:
                found.setdefault(asked_name(method["pruner"]), []).append(str(method.get("name")))
        return found

    def check_pruners(self) -> None:
        """Raise where no method asks for a saved pruner.

        Raises:
            GlimpseError: naming the key of a method that asks for it.
        """
        asked = {asked_name(method["pruner"]) for method in self._methods() if method["pruner"]}
        for name, folder in self.pruners.items():
            if name in asked:
                continue
            flag, key = (folder, "true") if name == UNNAMED else (f"{name}={folder}", name)
            others = [other for other in asked if other != UNNAMED]
            raise GlimpseError(
                f"Nothing reads `--pruner {flag}`: expected a method that says `pruner: {key}`, but no method of the "
                f"ablation does.{nearest(name, others)} Add one to its `methods` (`- {{name: mine, pruner: {key}}}`), "
                "or leave the pruner out."
            )

    def _methods(self) -> list[Mapping[str, Any]]:
        """The methods that have a key ``pruner``."""
        return [each for each in self.axes.get("methods", []) if isinstance(each, Mapping) and "pruner" in each]

    def with_flags(self, flags: Mapping[str, Any]) -> Settings:
        """These settings under command-line flags; a flag of ``None`` changes nothing."""
        return _checked(replace(self, **{name: value for name, value in flags.items() if value is not None}), "flags")

    def text(self) -> str:
        """As YAML that :func:`read` takes."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def asked_name(asked: bool | str) -> str:
    """Name of the pruner that a method's ``pruner: true`` or ``pruner: NAME`` asks for."""
    return UNNAMED if asked is True else str(asked)


def read(path: Path) -> Settings:
    """Read an ablation.

    Raises:
        GlimpseError: where it is no YAML mapping, or has an unknown key or an impossible value.
    """
    data = read_settings(path, Settings, {"base", "axes"}, "`base` (a recipe) and `axes`")
    return _checked(Settings(**{"name": path.stem, **data}), str(path))


def _checked(settings: Settings, where: str) -> Settings:
    expect = expecting(settings, where)
    expect("mode", " or ".join(MODES), settings.mode in MODES)
    expect("base", "the name or file of a recipe", isinstance(settings.base, str))
    expect("axes", "a mapping of at least one axis to a list of values", _is_axes(settings.axes))
    expect("set", "a mapping of dotted keys to values", isinstance(settings.set, Mapping))
    expect("pruner", "a folder, or a mapping of names to folders", _is_pruner(settings.pruner))
    expect("floor", "the name of a method", settings.floor is None or isinstance(settings.floor, str))
    expect("limit", "at least 1 question", settings.limit is None or _positive(settings.limit))
    expect("devices_per_cell", "at least 1", _positive(settings.devices_per_cell))
    return settings


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _is_pruner(value: Any) -> bool:
    folders = [*value.values()] if isinstance(value, Mapping) else [value]
    return all(folder is None or isinstance(folder, str) for folder in folders)


def _is_axes(axes: Any) -> bool:
    return isinstance(axes, Mapping) and bool(axes) and all(isinstance(v, list) and v for v in axes.values())
