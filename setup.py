"""Where setup.cfg's packages lie. Windows checks out links as text files, unless ``core.symlinks`` is on."""

from pathlib import Path

from setuptools import setup

FOLDERS = ("callbacks", "recipes")
LINKED = all(Path("glimpse_lightning", folder).is_dir() for folder in FOLDERS)

# With links every package lies where its name says. `pip install -e .` then writes a plain path, which editors and mypy
# follow. Without them it installs an import hook, which they do not see.
setup(package_dir={"": "."} if LINKED else {f"glimpse_lightning.{folder}": folder for folder in FOLDERS})
