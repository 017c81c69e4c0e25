"""jsonargparse's errors, shortened to one readable paragraph."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.runtime.errors import nearest
from glimpse_lightning.scorers.base import Scorer

BASES: tuple[type, ...] = (Scorer, Policy, Reducer, Objective)


def readable(message: str, options: Sequence[str] = ()) -> str:
    """The parser's ``message`` as one paragraph, with the nearest choices where a name is misspelt.

    Args:
        message: the parser's error.
        options: flags that the parser knows.
    """
    key_match = re.search(r'Parser key "([\w.]+)"', message)
    key = key_match[1] if key_match else ""
    if missing := re.search(r"Expected a dot import path string: (\S+)", message):
        names = _class_names(message, key)
        ours = [name for name, module in names.items() if module.startswith("glimpse_lightning")] or list(names)
        choices = f" Choices: {', '.join(ours)}; or a dotted import path." if ours else ""
        return _at(key, f"there is no class {missing[1]!r}.{nearest(missing[1], list(names))}{choices}")
    if unknown := re.search(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        return _unknown_option(key, unknown[1] or unknown[2], options)
    if flag := re.match(r"unrecognized arguments: (--[\w.]+)", message):
        if flag[1] == "--data.limit":  # what `--limit` is short for
            return "`--limit` is for suites; elsewhere `--data.test_size` is the number of questions of a test."
        return f"there is no option {flag[1]}.{nearest(flag[1], options)} `fit --help all` lists every one."
    if stray := re.match(r"unrecognized arguments: ([^-\s]\S*)", message):
        each = " (one question about all; `--image FOLDER` asks about each)" if "--image" in options else ""
        return f"there is no flag before {stray[1]!r}; a list is one argument: '[a.png, b.png]'{each}."
    given = re.search(r"Given value: (?!NestedArg)(.{1,60})$", message)
    reasons = "; ".join(_reasons(message))
    return _at(key, reasons + (f", but got {given[1]}" if given and not reasons.endswith(".") else ""))


def _at(key: str, text: str) -> str:
    return f"`{key}`: {text}" if key else text


def _unknown_option(key: str, name: str, options: Sequence[str]) -> str:
    known = [option.removeprefix("--").removesuffix("+") for option in options if not option.endswith(".help")]
    if name in ("train", "val", "test", "predict") and "tasks" in known:
        return (
            f"`data.{name}` is not read by a suite, whose data are `data.tasks`. Questions of your own go with a "
            "recipe of a method, such as attention_rank."
        )
    return _at(key, f"there is no option {name!r}.{nearest(name, list(dict.fromkeys(known)))}")


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
