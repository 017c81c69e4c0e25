"""The recipes in the package: listed, shown, copied out, and found by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from glimpse_lightning.runtime.errors import GlimpseError, nearest


def recipe_folder() -> Path:
    """Folder of the packaged recipes."""
    return Path(str(files("glimpse_lightning.recipes")))


def recipes() -> dict[str, Path]:
    """Every recipe by name: its path without ``.yaml``, ``methods/fastv`` for example."""
    folder = recipe_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The path of a recipe.

    Raises:
        GlimpseError: where there is none of that name.
    """
    known = recipes()
    plain = name.removesuffix(".yaml").removeprefix("recipes/")
    if plain in known:
        return known[plain]
    hint = nearest(plain, list(known))
    if name.endswith((".yaml", ".yml")):
        raise GlimpseError(
            f"{name}: no such file; looked for {Path(name).absolute()}, as paths begin at the current folder. No "
            f"packaged recipe is called so either.{hint} `recipes list` names them."
        )
    raise GlimpseError(f"No file and no recipe is called {name!r}.{hint} Recipes: {', '.join(known)}.")


def recipe_file(name: str) -> Path:
    """The file of this name, or else the packaged recipe.

    Raises:
        GlimpseError: where there is neither.
    """
    return Path(name) if Path(name).is_file() else find_recipe(name)


def purpose(path: Path) -> str:
    """The first line of a recipe's header comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a recipe to a file, or into a folder; an existing file is never overwritten."""
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() or not destination.suffix else destination
    if target.exists():
        raise GlimpseError(f"{target} exists already; name another destination, or delete it first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target
