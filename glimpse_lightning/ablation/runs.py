"""Cells as runs: their folders, the finished ones, and several of them in one process."""

from __future__ import annotations

import gc
import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from glimpse_lightning.ablation.cells import PRUNING, Cell
from glimpse_lightning.ablation.overrides import get
from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.load import LOADING
from glimpse_lightning.cli import trainer_runs as lightning_cli
from glimpse_lightning.cli.identity import changed_since
from glimpse_lightning.cli.recipe_check import Checked, check
from glimpse_lightning.evaluation.shared_questions import SharedQuestions
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.model.storage import load_pruner
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.run_folder import RECIPE, RunFolder
from glimpse_lightning.runtime.whole_files import remove, write_text
from glimpse_lightning.training.module import PruningModule

ERROR, LOG = "error.txt", "output.log"
NO_MATTER = ("vars", "seed_everything", "trainer.callbacks", "trainer.logger", "trainer.default_root_dir")


class CellFolders:
    """Files and folders of an ablation's cells.

    Args:
        root: the ablation's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def recipe(self, cell: Cell) -> Path:
        """The cell's recipe, whole."""
        return self.root / "cells" / f"{cell.name}.yaml"

    def write_recipe(self, cell: Cell) -> Path:
        """Write the cell's recipe."""
        path = self.recipe(cell)
        write_text(path, cell.text())
        return path

    def finished(self, cell: Cell) -> Path | None:
        """The newest finished run of exactly this cell, on its files' present content; ``None`` where there is none."""
        for path in sorted(self.folder(cell).glob(f"{cell.mode}_*"), key=lambda path: path.stat().st_mtime)[::-1]:
            saved = path / RECIPE
            mine = saved.is_file() and saved.read_text(encoding="utf-8") == cell.text()
            if mine and RunFolder(path).finished and not changed_since(path):
                return path
        return None

    def folder(self, cell: Cell) -> Path:
        """Folder of the cell's runs."""
        return self.root / cell.name

    def error(self, cell: Cell) -> str | None:
        """The error with which the cell failed; ``None`` where it did not."""
        path = self.folder(cell) / ERROR
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def fail(self, cell: Cell, error: str) -> None:
        """Record the error with which the cell failed."""
        write_text(self.folder(cell) / ERROR, error)

    def begin(self, cell: Cell) -> None:
        """Forget an earlier failure."""
        remove(self.folder(cell) / ERROR)


def checked(folders: CellFolders, cells: Sequence[Cell]) -> dict[str, Checked]:
    """Write, parse and instantiate every cell's recipe, and read its saved pruner, before any runs.

    Raises:
        GlimpseError: where one cannot run; it names the cell.
    """
    found: dict[str, Checked] = {}
    for mode in sorted({cell.mode for cell in cells}):
        mine = [cell for cell in cells if cell.mode == mode]
        results = check(mode, [folders.write_recipe(cell) for cell in mine])
        for cell, result in zip(mine, results, strict=True):
            if mode == "fit" and isinstance(result.model, PruningModule) and result.model.objective is None:
                raise GlimpseError(
                    f"Cell {cell.name!r} has nothing to train: expected `model.objective`, but got none. Give its "
                    "method `mode: test`, or choose a base that has one."
                )
            found[cell.name] = result
    _check_pruners(found)
    return found


def _check_pruners(found: Mapping[str, Checked]) -> None:
    """Load every saved pruner once, which a run does only after it has loaded its backbone."""
    loaded = set[str]()
    for name, result in found.items():
        source = get(result.config, "model.init_args.pruner") or get(result.config, "model.pruner")
        if not isinstance(result.model, VLMModule) or not isinstance(source, str) or source in loaded:
            continue
        try:
            load_pruner(source, any_backbone=True, **result.model.pruner_source.options())
        except GlimpseError as error:
            raise GlimpseError(f"Cell {name!r}: {error}") from error
        loaded.add(source)


def process_key(cell: Cell, config: Mapping[str, Any]) -> str | None:
    """Key that is equal for cells that can share a process: the backbone and its loading; ``None``: none can."""
    if cell.mode != "test" or "class_path" in config["model"] or "class_path" in config["data"]:
        return None
    return json.dumps([config["model"].get(key) for key in LOADING])


def questions_key(config: Mapping[str, Any]) -> str:
    """Key that is equal for cells with the same questions and full model: all settings but the pruner's."""
    model = {key: value for key, value in config["model"].items() if key not in PRUNING}
    trainer = {key: value for key, value in config["trainer"].items() if f"trainer.{key}" not in NO_MATTER}
    rest = {key: value for key, value in config.items() if key not in NO_MATTER}
    return json.dumps({**rest, "model": model, "trainer": trainer}, sort_keys=True, default=str)


class CellRunner:
    """Runs cells one after another in this process; those that can, share backbone, questions and full answers.

    Args:
        folders: the cells' folders.
        cells: all cells that it may be asked to run.
        checked: their settings and models.
        memory: bytes that embedded questions may take.
    """

    def __init__(
        self, folders: CellFolders, cells: Sequence[Cell], checked: Mapping[str, Checked], memory: float
    ) -> None:
        self.folders = folders
        self.memory = memory
        self._keys = {
            cell.name: (process_key(cell, checked[cell.name].config), questions_key(checked[cell.name].config))
            for cell in cells
        }
        self._models = {name: found.model for name, found in checked.items()}
        self._backbone: tuple[str, Backbone] | None = None
        self._questions: tuple[str, SharedQuestions] | None = None

    def run(self, cells: Sequence[Cell], done: Callable[[Cell], None] = lambda cell: None) -> None:
        """Run ``cells``; a failed one is recorded and does not stop the others. ``done`` is called after each."""
        keys = [self._keys[cell.name] for cell in cells]
        processes = [process for process, _ in keys]
        # Cells that share something run one after another; the order is otherwise unchanged.
        order = sorted(
            cells, key=lambda c: (processes.index(self._keys[c.name][0]), keys.index(self._keys[c.name]))
        )  # fmt: skip
        for cell in order:
            self.folders.begin(cell)
            try:
                with _quiet(self.folders.folder(cell) / LOG):
                    self._run(cell, order)
            except Exception as error:
                self.folders.fail(cell, _described(error))
            done(cell)

    def _run(self, cell: Cell, cells: Sequence[Cell]) -> None:
        recipe, root = self.folders.recipe(cell), self.folders.root
        args = [cell.mode, "--config", str(recipe), "--trainer.default_root_dir", str(root)]
        process, questions = self._keys[cell.name]
        if process is None:
            self._backbone = self._questions = None
            lightning_cli.run(args)
            return

        def prepare(model: PruningModule, data: Any) -> None:
            backbone = self._loaded(process, model)
            alike = [other for other in cells if self._keys[other.name] == (process, questions)]
            model.share(backbone, self._shared(questions, alike))

        lightning_cli.run(args, prepare)

    def _loaded(self, key: str, model: PruningModule) -> Backbone:
        if self._backbone is None or self._backbone[0] != key:
            self._backbone = self._questions = None
            gc.collect()  # the old one must go before the new one comes
            assert isinstance(model.backbone, str)
            self._backbone = key, load_backbone(model.backbone, **model.backbone_options)
        return self._backbone[1]

    def _shared(self, key: str, cells: Sequence[Cell]) -> SharedQuestions:
        if self._questions is None or self._questions[0] != key:
            self._questions = None
            taps = dict.fromkeys(tap for cell in cells for tap in self._taps(cell))
            self._questions = key, SharedQuestions(tuple(taps), self.memory)
        return self._questions[1]

    def _taps(self, cell: Cell) -> tuple[Any, ...]:
        """States of the vision tower that a cell requires; none where its model cannot be built: its own run fails."""
        model = self._models.pop(cell.name)  # or it would keep this backbone in memory
        assert isinstance(model, PruningModule) and self._backbone is not None
        model.over(self._backbone[1])
        try:
            model.configure_model()
        except Exception:
            return ()
        return model.model.vision_layers


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Write a cell's output to its log; only warnings reach the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _described(error: BaseException) -> str:
    if isinstance(error, GlimpseError):
        return " ".join(str(error).split()) + "\n"
    return "".join(traceback.format_exception(error))
