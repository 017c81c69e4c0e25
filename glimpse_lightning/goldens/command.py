"""The command line of ``golden``."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.cli.packaged_recipes import recipe_file
from glimpse_lightning.goldens.cases import GRIDS, WIDTH, read, recorded, write
from glimpse_lightning.goldens.ports import differences, function_port, recipe_port
from glimpse_lightning.policies.from_function import INPUTS, inputs_of
from glimpse_lightning.runtime import machine
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.quiet import quieten
from glimpse_lightning.runtime.terminal import show

HELP = f"""\
usage: glimpse-lightning golden record FUNCTION --output FILE     what a method's own code keeps of random tokens
       glimpse-lightning golden check FILE --config RECIPE        whether a recipe's scorer and policy keep the same
       glimpse-lightning golden check FILE --function FUNCTION    whether another function does

FUNCTION is a dotted path (my_code.select) to f(...) -> indices of one image. Its parameters say by name what it gets:
{", ".join(INPUTS)}.
More: golden record --help, golden check --help
"""


def run(args: Sequence[str]) -> int:
    """Record or check a golden file; returns the exit status, 1 where a port keeps other tokens.

    Raises:
        GlimpseError: where a function, a recipe or a file cannot be used.
    """
    match [*args]:
        case ["record", *rest]:
            return _record(_recorder().parse_args(rest))
        case ["check", *rest]:
            return _check(_checker().parse_args(rest))
        case [] | ["-h"] | ["--help"]:
            print(HELP, end="")
            return 0
    raise GlimpseError(f"Expected `golden record` or `golden check`, but got {args[0]!r}. See `golden --help`.")


def _recorder() -> CommandParser:
    parser = CommandParser("golden record", "Record what a method's own code keeps of random tokens.")
    parser.add_argument("function", help="dotted path of the function")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    parser.add_argument("--channels", type=int, default=WIDTH, help=f"channels of states and keys ({WIDTH})")
    parser.add_argument(
        "--grid", action="append", type=_grid, metavar="ROWSxCOLUMNS", help="size of an image in tokens; repeatable"
    )
    _add_arguments(parser)
    return parser


def _checker() -> CommandParser:
    parser = CommandParser("golden check", "Compare what a port keeps with what was recorded.")
    parser.add_argument("file", type=Path, help="file of `golden record`")
    port = parser.add_mutually_exclusive_group(required=True)
    port.add_argument("--config", help="recipe, by name or file, whose scorer and policy are compared")
    port.add_argument("--function", help="dotted path of a function to compare")
    _add_arguments(parser)
    return parser


def _add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=VALUE",
        help="another argument of the function; repeatable",
    )


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) * int(columns) >= 15):
        raise argparse.ArgumentTypeError(f"expected rows and columns of at least 15 tokens, as 24x24, but got {text!r}")
    return int(rows), int(columns)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, but got {text!r}")
    return name, yaml.safe_load(value)


def found(path: str) -> Callable[..., Any]:
    """The function at a dotted path.

    Raises:
        GlimpseError: where there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise GlimpseError(
            f"Expected the dotted path of a function, as my_code.select, but {path!r} cannot be imported: {error}."
        ) from error
    return function


def _record(given: argparse.Namespace) -> int:
    function, arguments = found(given.function), dict(given.argument)
    cases = []
    grids = given.grid or GRIDS
    for case in recorded(function, arguments, given.seed, grids, given.channels):
        cases.append(case)
        show(f"case {len(cases)} of {len(grids)}: {case.grid[0]} x {case.grid[1]}, budgets {sorted(case.kept)}")
    metadata = {
        "function": given.function,
        "arguments": yaml.safe_dump(arguments, default_flow_style=True).strip(),
        "inputs": " ".join(inputs_of(function, arguments)),
        "seed": str(given.seed),
        "machine": json.dumps(machine.describe(torch.device("cpu"))),
    }
    write(cases, given.output, metadata)
    show(f"Written: {given.output}, {sum(len(case.kept) for case in cases)} selections.")
    return 0


def _check(given: argparse.Namespace) -> int:
    cases, metadata = read(given.file)
    quieten()
    arguments = dict(given.argument)
    if given.config is not None:
        if arguments:
            raise GlimpseError("`--argument` is of `--function`; options of a recipe are set in its file.")
        port, name = recipe_port(recipe_file(given.config), given.config), given.config
    else:
        port, name = function_port(found(given.function), arguments), given.function
    found_differences = differences(cases, port)
    total = sum(len(case.kept) for case in cases)
    for each in found_differences:
        rows, columns = cases[each.case].grid
        show(
            f"case {each.case:02} ({rows} x {columns}), budget {each.budget}: {name} keeps {each.kept} tokens, "
            f"recorded are {each.recorded}, {each.common} in common"
        )
    equal = total - len(found_differences)
    show(f"{equal} of {total} selections of {metadata.get('function', given.file)} are the same in {name}.")
    return 1 if found_differences else 0
