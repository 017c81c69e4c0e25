"""jsonargparse's errors, shortened to one readable paragraph."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from traceback import walk_tb
from typing import Any

from torch.utils.data import Dataset

from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.tables.table import Table
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.runtime.errors import GlimpseError, did_you_mean, nearest
from glimpse_lightning.scorers.base import Scorer

BASES: tuple[type, ...] = (Scorer, Policy, Reducer, Objective)
COMMAND, FLAG, KEY = "{command}", "{flag}", "{key}"
"""Places in the error of a component's parser for what only the command's parser knows."""


def readable(message: str, options: Sequence[str] = (), command: str = "", kind: type | None = None) -> str:
    """The parser's ``message`` as one paragraph, with the nearest choices where a name is misspelt.

    Args:
        message: the parser's error.
        options: flags that the parser knows.
        command: the command whose parser it is; default: a component's, whose message ends up in one of the command's.
        kind: class whose options the parser reads.
    """
    text = _readable(message, options, command, kind)
    key_match = re.search(r'Parser key "([\w.]+)"', message)
    key = f".{key_match[1]}" if key_match else ""
    if not command:  # of a component within a component
        return text.replace(FLAG, f"{FLAG}{key}").replace(KEY, f"{KEY}{key}") if key else text
    if f"--{key[1:]}.help" not in options:
        text = _HELP.sub("", text)
    text = text.replace(FLAG, f"--{key[1:]}").replace(KEY, key.rpartition(".")[2])
    return text.replace(COMMAND, command)


def _readable(message: str, options: Sequence[str], command: str, kind: type | None) -> str:
    key_match = re.search(r'Parser key "([\w.]+)"', message)
    key = key_match[1] if key_match else ""
    if missing := re.search(r"Expected a dot import path string: (\S+)", message):
        names = _class_names(message, key)
        ours = [name for name, module in names.items() if module.startswith("glimpse_lightning")] or list(names)
        choices = f" Choices: {', '.join(ours)}; or a dotted import path." if ours else ""
        return _at(key, f"there is no class {missing[1]!r}.{nearest(missing[1], list(names))}{choices}")
    if unknown := re.search(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        return _unknown_option(key, unknown[1] or unknown[2], options, kind)
    if flag := re.match(r"unrecognized arguments: (--[\w.]+)", message):
        if flag[1] == "--data.limit":  # what `--limit` is short for
            return "`--limit` is for suites; elsewhere `--data.test_size` is the number of questions of a test."
        return _unknown_flag(flag[1], options, command, kind)
    if stray := re.match(r"unrecognized arguments: ([^-\s]\S*)", message):
        each = " (one question about all; `--image FOLDER` asks about each)" if "--image" in options else ""
        return f"there is no flag before {stray[1]!r}; a list is one argument: '[a.png, b.png]'{each}."
    given = re.search(r"Given value: (?!NestedArg)(.{1,60})$", message)
    reasons = "; ".join(dict.fromkeys(_reasons(message)))
    return _at(key, reasons + (f", but got {given[1]}" if given and not reasons.endswith(".") else ""))


def by_option(error: Exception, config: Mapping[str, Any]) -> str:
    """The message of an error, in which the arguments of the component that it is about are called by their options.

    A constructor knows its arguments only. Of `ratio` the user sees neither whose it is, nor where it was given, as a
    recipe's variable may have set it.

    Args:
        error: an error of constructing what ``config`` describes.
        config: a parsed configuration, with ``class_path`` and ``init_args`` of the components in it.
    """
    kind, given = _constructed(error)
    message = str(error) if isinstance(error, GlimpseError) else readable(str(error))
    found = [(key, args) for key, path, args in _components(config) if kind and path.split(".")[-1] == kind.__name__]
    if not found:
        return message
    key, args = next((one for one in found if _given(one[1]).items() <= _given(given).items()), found[0])

    def called(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in args:
            return match[0]
        return f"`{key}.{name}`" if value is None else f"`--{key}.{name} {value}`"

    return re.sub(r"`(\w+)(?:: ([^`]+))?`", called, message)


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that are the same in a configuration and in a constructor's call."""
    return {name: value for name, value in arguments.items() if isinstance(value, (str, int, float, bool))}


def _constructed(error: BaseException | None) -> tuple[type | None, dict[str, Any]]:
    """The component in whose constructor an error was raised, or one that it came from; and its arguments there."""
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            given = frame.f_locals
            if frame.f_code.co_name == "__init__" and isinstance(given.get("self"), BASES):
                return type(given["self"]), {**given, **given.get("keys", {})}
        error = error.__cause__ or error.__context__
    return None, {}


def _components(config: Any, key: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Option, class and arguments of each component in a configuration."""
    if isinstance(config, list):
        for number, each in enumerate(config):
            yield from _components(each, f"{key}[{number}]")
    elif isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            config = {**config, **(config.get("init_args") or {})}
            yield key, config["class_path"], {name: config[name] for name in config.get("init_args") or {}}
        for name, value in config.items():
            if name not in ("class_path", "init_args"):
                yield from _components(value, f"{key}.{name}" if key else name)


def _at(key: str, text: str) -> str:
    return f"`{key}`: {text}" if key else text


def _unknown_flag(flag: str, options: Sequence[str], command: str, kind: type | None) -> str:
    known = _names(options)
    if command:
        near = _nearest_option(flag, [f"--{name}" for name in known])
        return f"there is no option {flag}.{near} `{command} --help all` lists every one."
    name = flag.removeprefix("--")
    return f"there is no option {FLAG}.{name}.{_elsewhere(name, kind) or nearest(name, known)}{_help(kind)}"


def _unknown_option(key: str, name: str, options: Sequence[str], kind: type | None) -> str:
    known = _names(options)
    if name in ("train", "val", "test", "predict") and "tasks" in known:
        return (
            f"`data.{name}` is not read by a suite, whose data are `data.tasks`. Questions of your own go with a "
            "recipe of a method, such as attention_rank."
        )
    return _at(
        key, f"there is no option {name!r}.{_elsewhere(name, kind) or _nearest_option(name, known)}{_help(kind)}"
    )


def _names(options: Sequence[str]) -> list[str]:
    """Options by name: without those that print a help, and with a list's two flags (`--x`, `--x+`) as one."""
    found = (option.removeprefix("--").removesuffix("+") for option in options if option.startswith("--"))
    return list(dict.fromkeys(name for name in found if name != "help" and not name.endswith(".help")))


def _elsewhere(name: str, kind: type | None) -> str:
    """The dataset that has an option which another one lacks; empty where it is none of a file of questions."""
    if kind is None or not issubclass(kind, Dataset) or issubclass(kind, Table):
        return ""
    if name.partition(".")[0] not in inspect.signature(Table).parameters:
        return ""
    if issubclass(kind, JSONL):
        return f" JSONL has none, but Table does, which reads such files, too: `{FLAG} Table {FLAG}.path FILE`."
    what = "Name the class of the dataset" if kind is Dataset else f"{kind.__name__} has none. Name another dataset"
    class_path = f"`{KEY}: {{class_path: Table, init_args: {{path: FILE}}}}`"
    return f" {what}, in a recipe {class_path}, or the file of questions alone: `{KEY}: FILE`, `{FLAG} FILE`."


def _help(kind: type | None) -> str:
    """The command that lists a component's options."""
    if kind is None or inspect.isabstract(kind) or kind is Dataset:
        return ""
    return f" `{COMMAND} {FLAG}.help {kind.__name__}` lists those of {kind.__name__}."


_HELP = re.compile(r" `[^`]*\.help \w+` lists those of \w+\.")


def _nearest_option(name: str, options: Sequence[str]) -> str:
    """A suggestion: options of the same last name, such as a recipe's variable; without any, the nearest ones."""
    last = name.rpartition(".")[2].removeprefix("--")
    same = [option for option in options if "." in name and option.rpartition(".")[2] == last and "." in option]
    return did_you_mean(sorted(same, key=lambda option: "vars." not in option)) if same else nearest(name, options)


def _reasons(message: str) -> list[str]:
    """The reasons of an error, without the names of union types, and without the alternative ``null``."""
    text = re.sub(r'Parser key "[\w.]+":', "", message)
    if "Errors:" in text:
        text = re.split(r"\n\s*Given value", text.split("Errors:", 1)[1], maxsplit=1)[0]
    parts = [" ".join(part.split()) for part in re.split(r"(?:^|\n)\s*- ", text)]
    noise = ("Expected a <class 'NoneType'>", "Does not validate against any of the Union subtypes")
    return [_plain(part) for part in parts if part and not part.startswith(noise)]


def _plain(reason: str) -> str:
    """A reason in words, where it names an internal type of jsonargparse (layers as shares of the depth)."""
    return "Expected a share above 0 and below 1" if "OpenUnitInterval" in reason else reason


def _class_names(message: str, key: str) -> dict[str, str]:
    """Concrete subclasses of the base classes that ``message`` or ``key`` names: name -> module."""
    bases = [base for base in BASES if base.__name__.lower() == key.rpartition(".")[2]]
    expected = message.split("Given value", 1)[0]
    for dotted in re.findall(r"(?:<class '|dict\[str, )([\w.]+)['\]]", expected):
        module, _, name = dotted.rpartition(".")
        base = getattr(importlib.import_module(module), name, None) if module else None
        bases += [base] if inspect.isclass(base) else []
    return {kind.__name__: kind.__module__ for kind in concrete(*bases)}


def concrete(*bases: type) -> list[type]:
    """Public classes that can be instantiated, out of ``bases`` and all their subclasses, by name."""
    kinds = {kind for base in bases for kind in _subclasses(base) if not inspect.isabstract(kind)}
    return sorted((kind for kind in kinds if not kind.__name__.startswith("_")), key=lambda kind: kind.__name__)


def _subclasses(base: type) -> set[type]:
    found: set[type] = {base}
    children: list[type] = base.__subclasses__()
    for child in children:
        found |= _subclasses(child)
    return found
