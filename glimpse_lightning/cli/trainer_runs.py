"""The commands that run a Trainer: ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
import torch
import yaml
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from glimpse_lightning import callbacks, metrics, objectives, policies, reducers, scorers
from glimpse_lightning.backbones.presets import check_has_processor
from glimpse_lightning.cli.brief_help import whole
from glimpse_lightning.cli.checkpoint_config import checkpoint_config
from glimpse_lightning.cli.data_options import (
    DATASETS,
    check_single_flags,
    check_training_flags,
    files_as_datasets,
    files_as_datasets_in,
    replaced_datasets_anew,
    without_answers,
)
from glimpse_lightning.cli.identity import changed_since, differences, write_inputs
from glimpse_lightning.cli.parser_errors import by_option, readable
from glimpse_lightning.cli.part_help import listing
from glimpse_lightning.cli.precision import auto_precision, device_of, settle
from glimpse_lightning.cli.pruner_flag import pruner_alone
from glimpse_lightning.cli.recipe_files import (
    check_vars,
    given_as_null,
    names_class,
    read_yaml,
    recipe_name,
    recipe_text,
    texts_aside,
    with_recipes,
)
from glimpse_lightning.cli.trainer_settings import check_launcher, check_settings, readable_settings
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.dense_glyph_vqa import DenseGlyphVQA
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.images import load_image
from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.one_question import OneQuestion
from glimpse_lightning.data.tables.hub import HubVQA
from glimpse_lightning.data.tables.table import Table
from glimpse_lightning.data.visual_cot import VisualCoTBenchmark, VisualCoTTrain
from glimpse_lightning.evaluation.suite import SuiteData, SuiteModule
from glimpse_lightning.evaluation.vlm_module import VLMModule
from glimpse_lightning.model.storage import save_pruner
from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.dtypes import AUTO
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import full_state
from glimpse_lightning.runtime.paths import TEXTS, expanded
from glimpse_lightning.runtime.quiet import quieten
from glimpse_lightning.runtime.run_folder import CONFIG, RECIPE, TRAINED, RunFolder, claim_run, finished_fits
from glimpse_lightning.runtime.terminal import show
from glimpse_lightning.runtime.whole_files import FULL_DISK, write_text
from glimpse_lightning.training.module import PruningModule
from glimpse_lightning.training.strategies import FSDP2

RUN_FOLDER = "GLIMPSE_RUN_FOLDER"
"""Environment variable with which the ranks of one run agree on its folder."""

PLUGINS = "glimpse_lightning.plugins"
"""Entry-point group of modules to import before parsing, so that short names of their classes resolve."""

NAMED_IN_SHORT = (
    callbacks, metrics, objectives, policies, reducers, scorers, FSDP2,
    DenseGlyphVQA, GlyphVQA, HubVQA, JSONL, Table, VisualCoTBenchmark, VisualCoTTrain, SuiteData, SuiteModule,
)  # fmt: skip
"""Shelves and classes that a recipe names without their module: the parser knows the classes that are imported."""

SHORT_FLAGS = {
    "--backbone": "--model.backbone", "--limit": "--data.limit", "--pruner": "--model.pruner",
    "--retention": "--model.retention", "--threshold": "--model.threshold",
}  # fmt: skip
"""Short names of flags; ``--limit`` is for suites."""

DEFAULTS = {
    "trainer.default_root_dir": "runs",
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 10,
    "trainer.enable_model_summary": False,
}


class RunTrainer(Trainer):
    """A Trainer that knows ``precision: auto``, and whose ``predict`` also takes a question from the command line.

    Args:
        precision: as in Lightning; or `auto`: bf16-mixed where the device is fast at bfloat16, 32-true elsewhere.
        **kwargs: further arguments of Lightning's Trainer.
    """

    def __init__(self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **kwargs: Any) -> None:
        if precision == AUTO:
            precision = auto_precision(device_of(kwargs.get("accelerator")))
        super().__init__(precision=precision, **kwargs)

    @override
    def predict(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        image: str | list[str] | None = None,
        question: str | None = None,
        overlays: int = 8,
    ) -> Any:
        """Answer questions, and draw the kept tokens of the first few.

        Answers are written batch by batch; the same command goes on with a run that was stopped.

        Args:
            model: the module.
            dataloaders: batches of questions.
            datamodule: data module of the questions, unless `question` is given.
            return_predictions: whether to return the predictions.
            ckpt_path: checkpoint to take the weights from; default: the recipe's last finished fit.
            weights_only: the argument of `torch.load`.
            image: image file that the question is about; several, which it is about together, as [one.png, two.png];
                or a folder, whose images are asked about one by one.
            question: a question to answer instead of the data module's.
            overlays: number of questions to draw, -1 for all.
        """
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.TokenOverlay):
                callback.draw(overlays)
        if (image is None) != (question is None):
            raise GlimpseError("Expected `--image FILE` and `--question TEXT` together, but got only one of them.")
        if image is not None and question is not None:
            if not question.strip():
                raise GlimpseError("Expected `--question` to be a text that is not empty.")
            size = datamodule.eval_batch_size if isinstance(datamodule, VQAData) else None
            datamodule = VQAData(predict=_asked(image, question), eval_batch_size=size, num_workers=0)
        return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)


class RunParser(LightningArgumentParser):
    """A parser whose errors are one paragraph, and that takes no beginning of a flag's name for the flag."""

    flags: Sequence[str] = ()
    """Flags of the subcommand, from which errors suggest the nearest one."""
    command = ""
    """The subcommand; empty in the parser of a component's options."""
    kind: type | None = None
    """Class whose options a component's parser reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self.started_in = Path.cwd()

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [*self.flags, *self._option_string_actions]
        raise GlimpseError(readable(message, options, self.command, self.kind)) from ex

    @override
    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> list[str]:
        self.kind = theclass if nested_key is None and isinstance(theclass, type) else self.kind
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    @override
    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:
        return super().parse_string(files_as_datasets_in(content, self.started_in), *args, **kwargs)

    @override
    def instantiate(self, namespace: jsonargparse.Namespace, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:
        """Instantiate, less the datasets that the command does not read: their files may be on another machine."""
        return super().instantiate(_without_unread(namespace), *args, **kwargs)


class RunCLI(LightningCLI):
    """LightningCLI with run folders, resuming, and flags > config > checkpoint.

    Args:
        args: command line without the program's name.
        config_files: the configuration files among them.
        prepare: function called with module and data module before the backbone is loaded.
        texts: values of the names that stand for texts in ``args``; see ``texts_aside``.
        command_line: the command as it was typed, for results.json.
    """

    def __init__(
        self,
        args: list[str],
        config_files: Sequence[Path],
        prepare: Callable[[Any, Any], None] | None = None,
        texts: Mapping[str, str] = {},
        command_line: str | None = None,
    ) -> None:
        self.asked = args[0]
        self.command_line = command_line
        self.config_files = list(config_files)
        self.prepare = prepare
        self.texts = texts
        self.recipe = recipe_name(self.config_files)
        self.run: RunFolder | None = None
        self.precision = ""
        free_model, free_data = (names_class(key, args, self.config_files) for key in ("model", "data"))
        super().__init__(
            model_class=LightningModule if free_model else PruningModule,
            datamodule_class=LightningDataModule if free_data else VQAData,
            subclass_mode_model=free_model,
            subclass_mode_data=free_data,
            save_config_callback=None,  # `instantiate_trainer` writes it before anything runs
            trainer_class=RunTrainer,
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf+"},
            parser_class=RunParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The trainer method that is asked for, and those of its arguments that are not offered.

        Lightning builds a parser for each method here, which takes half a second of processor time.
        """
        skipped = LightningCLI.subcommands()[self.asked]
        return {self.asked: {*skipped, "verbose"}}

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**kwargs, verbose=False)

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**kwargs, verbose=False)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--vars", type=dict, default={}, help="values of your own, used elsewhere as ${vars.name}")
        parser.set_defaults(DEFAULTS)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse: flags overrule config files, and these overrule the training settings of a checkpoint."""
        assert isinstance(args, list) and isinstance(parser, RunParser)
        names = {name: None for path in self.config_files for name in read_yaml(path).get("vars") or {}}
        of_command = self._parser(args[0])
        assert isinstance(of_command, RunParser)
        parser.flags = [*of_command._option_string_actions, *(f"--vars.{name}" for name in names)]
        of_command.flags, parser.command, of_command.command = parser.flags, args[0], args[0]
        with checkpoint_config(args) as extra:
            self.config = parser.parse_args([args[0], *extra, *args[1:]])
        nulls = given_as_null(args)
        for key, value in self.config.items(branches=False):
            if value == "None" and key.replace(".init_args", "").removeprefix(f"{args[0]}.") in nulls:
                self.config[key] = None
            elif isinstance(value, str) and value in self.texts:
                self.config[key] = self.texts[value]
            elif key.rpartition(".")[2] not in TEXTS:
                self.config[key] = expanded(value)
        if args[0] == "predict" and "class_path" not in self.config.predict.data:
            without_answers(self.config.predict.data)
        check_settings(args[0], self.config[args[0]])

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's version lets the checkpoint overrule config and flags. See ``parse_arguments``."""

    @override
    def instantiate_classes(self) -> None:
        """Instantiate; a component's error about its arguments becomes the user's message."""
        assert self.subcommand is not None
        self.precision = settle(self.config[self.subcommand])
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise GlimpseError(by_option(error, self.config[self.subcommand].as_dict())) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert self.subcommand is not None
        asks = isinstance(self.model, VLMModule) and isinstance(self.datamodule, (VQAData, SuiteData))
        if asks and isinstance(self.model.backbone, str):
            check_has_processor(self.model.backbone)
        if self.prepare is not None:
            self.prepare(self.model, self.datamodule)
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        text = self._parser(self.subcommand).dump(config, skip_link_targets=False)
        dump = yaml.safe_load(text)
        rank_zero_info(f"Precision: {self.precision}.")
        if self._choose_weights(root, dump):  # weights are part of a run: a resumed one keeps them
            config.ckpt_path = self.config_init[self.subcommand]["ckpt_path"]
            text = self._parser(self.subcommand).dump(config, skip_link_targets=False)
            dump = yaml.safe_load(text)
        self.run = self._claim(root, text)
        write_text(self.run.path / RECIPE, recipe_text(self.config_files))
        write_text(self.run.path / CONFIG, text)
        write_inputs(self.run.path, dump)
        self._resume()
        # So that a checkpoint alone describes how its model is built, without the `--model.pruner` of later runs.
        self.model.save_hyperparameters({"model": dump.get("model"), "seed": dump.get("seed_everything")})
        if config.trainer.logger in (None, True) and self.subcommand == "predict":
            kwargs["logger"] = False  # there is nothing to log
        elif config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.run.path), name="", version="", default_hp_metric=False)
        kwargs["default_root_dir"] = str(self.run.path)
        given = self._get(self.config_init, "trainer", default={}).get("callbacks") or []
        kwargs["callbacks"] = [*(given if isinstance(given, list) else [given])]
        own: tuple[type[Callback], ...] = (
            callbacks.RunCheckpoints, callbacks.TokenOverlay, callbacks.RetentionHistogram, callbacks.AnswerWriter
        )  # fmt: skip
        if self.subcommand == "fit" and config.trainer.logger not in (False, []):
            own += (LearningRateMonitor, callbacks.TrainingSpeed)
        for new in (kind() for kind in own):
            if not any(type(callback) is type(new) for callback in kwargs["callbacks"]):
                kwargs["callbacks"].append(new)
        bars = [callback for callback in kwargs["callbacks"] if isinstance(callback, ProgressBar)]
        if config.trainer.enable_progress_bar is not False and not bars:
            kwargs["callbacks"].append(callbacks.RunProgress())
        self.writer = callbacks.ResultsWriter(self.recipe, self.subcommand, self.command_line)
        kwargs["callbacks"].append(self.writer)
        try:
            with readable_settings(config.trainer):
                trainer = super().instantiate_trainer(**kwargs)
        except GlimpseError as error:
            if "fsdp" not in str(error).lower() or "invalid strategy" in str(error):
                raise
            raise GlimpseError(
                f"FSDPStrategy runs on GPUs only ({str(error).splitlines()[0].rstrip('.')}). On CPUs use FSDP2: the "
                "overlay `--config trainer/fsdp2` in place of `trainer/fsdp` or `trainer.strategy: fsdp`."
            ) from error
        check_launcher(trainer)
        checkpoint = self.config_init[self.subcommand].get("ckpt_path")
        if checkpoint and Path(checkpoint).is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
            raise GlimpseError(
                f"{checkpoint} is a folder with a file of each rank, which only FSDP2 reads: add `--config "
                "trainer/fsdp2`, or make one file of it with `python -m "
                f"lightning.pytorch.utilities.consolidate_checkpoint {checkpoint}`."
            )
        return trainer

    def _claim(self, root: Path, config: str) -> RunFolder:
        assert self.subcommand is not None
        if os.environ.get(RUN_FOLDER):
            return RunFolder(Path(os.environ[RUN_FOLDER]))
        if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
            raise GlimpseError(
                f"This process is not the first of its run, so it cannot choose the run's folder: set {RUN_FOLDER} to "
                "the same new folder for all ranks (Lightning's own launcher does so by itself)."
            )
        try:
            run = claim_run(root, self.recipe, self.subcommand, config, lambda path: not changed_since(path))
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            raise GlimpseError(
                f"The run's folder cannot be made under {root}: {error.strerror} ({error.filename}). Name a folder "
                "that can be written with `--trainer.default_root_dir`."
            ) from error
        os.environ[RUN_FOLDER] = str(run.path)
        return run

    def _choose_weights(self, root: Path, config: dict[str, Any]) -> bool:
        """Give commands other than `fit` the weights of the last finished fit of the same training; true if any."""
        assert self.subcommand is not None
        settings = self.config_init[self.subcommand]
        if self.subcommand == "fit" or settings.get("ckpt_path") is not None:
            return False
        if not (isinstance(self.model, VLMModule) and self.model.learns):
            return False
        others: list[tuple[Path, str]] = []
        for fit in finished_fits(root, self.recipe):
            other = _trained_otherwise(fit.path, config)
            settings["ckpt_path"] = None if other else _as_text(fit.last_checkpoint(rank_zero_info))
            if settings["ckpt_path"]:
                rank_zero_info(f"Using the weights of {settings['ckpt_path']}.")
                return True
            others += [(fit.path, other)] if other else []
        raise self._untrained(root / self.recipe, others)

    def _resume(self) -> None:
        """Let an interrupted fit go on from its last checkpoint."""
        assert self.run is not None and self.subcommand is not None
        settings = self.config_init[self.subcommand]
        if self.subcommand == "fit" and settings.get("ckpt_path") is None:
            settings["ckpt_path"] = _as_text(self.run.last_checkpoint(rank_zero_info))
            if settings["ckpt_path"]:
                rank_zero_info(f"Resuming the interrupted run in {self.run.path} from {settings['ckpt_path']}.")

    def _untrained(self, folder: Path, others: Sequence[tuple[Path, str]]) -> GlimpseError:
        objective = getattr(self.model, "objective", None)
        if objective is not None and objective.refines:
            what = f"What the {type(objective).__name__} of recipe {self.recipe!r} refines"
            instead = (
                "test what it starts from with --model.objective null (and --backbone FOLDER for a refined model, or "
                "--pruner FOLDER for a refined pruner, that a fit has saved)"
            )
        else:
            saved = others[0][0] / "pruner" if others else "FOLDER"
            what, instead = f"The scorer of recipe {self.recipe!r}", f"name a saved pruner with --pruner {saved}"
        if not others:
            return GlimpseError(
                f"{what} has to be trained first, but there is no finished fit under {folder}. Run `fit` with the same "
                f"config and root, name weights with --ckpt_path FILE, or {instead}."
            )
        fit, differs = others[0]
        return GlimpseError(
            f"{what} has been trained with other settings only: the fit in {fit} {differs}. To use it all the same, "
            f"{instead}; or run `fit` with these settings, or name weights with --ckpt_path FILE."
        )

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with readable_settings(self.config[subcommand].trainer):
            super()._run_subcommand(subcommand)
        if self.run is not None and self.trainer.is_global_zero:
            show(f"Run folder: {self.run.path}")

    def before_fit(self) -> None:
        """Print the run's folder, if there is anything to train; else nothing is loaded, and the folder is removed."""
        if isinstance(self.model, VLMModule):
            self.model.check_fit()
            if isinstance(self.datamodule, VQAData):
                self.datamodule.dataset("train")
                rank_zero_info(
                    f"The fit {self.datamodule.of_a_fit()}.{_never_validated(self.trainer, self.datamodule)}"
                )
        rank_zero_info(f"Run folder: {self.run.path if self.run else None}")

    def after_fit(self) -> None:
        """Save the trained weights, print their path, test them, and write the results, which end the run.

        After a failed test the fit is still finished: other commands use it, and the same command tests it again.
        Results that the test has written stay. Without any batch the test writes none, and they are written here.
        """
        assert self.run is not None
        if isinstance(self.model, PruningModule):
            self._save_and_test(self.run)
        if not self.run.finished:
            self.writer.write(self.trainer, self.model, None)

    def _save_and_test(self, run: RunFolder) -> None:
        if self.trainer.global_step == 0:
            raise GlimpseError(
                "The fit has taken no step of training, so that there is nothing to save. Raise `trainer.max_time`, or "
                "leave it out."
            )
        model, data = self.model, self.datamodule
        first, pruner = self.trainer.is_global_zero, model.model.pruner
        weights = None if pruner is None else full_state(pruner)
        if first and pruner is not None:
            save_pruner(pruner, run.path / "pruner", model.model.backbone, weights)
        if model.objective is not None:
            model.objective.save(model.model, run.path, write=first)
        if first:
            write_text(run.path / TRAINED, "")
        if not model.test_after_fit:
            return
        if isinstance(data, VQAData) and data.test is None:
            rank_zero_info("The fit ends without a test, as `data.test` names no dataset.")
            return
        model.test_fit(self.trainer, data)


def _never_validated(trainer: Trainer, data: VQAData) -> str:
    """A sentence where a fit's steps are fewer than those to its first validation; else empty."""
    steps, first = trainer.max_steps, trainer.val_check_interval
    if data.val is None or not isinstance(first, int) or not 0 <= steps < first:
        return ""
    return f" It validates on none of them: `trainer.val_check_interval: {first}` is more than its {steps} steps."


def _asked(image: str | list[str], question: str) -> OneQuestion:
    """The dataset of a question from the command line, about one or several images, or about each image of a folder."""
    files = [image] if isinstance(image, str) else image
    if len(files) == 1 and Path(files[0]).is_dir():
        return OneQuestion.about_each(Path(files[0]), question)
    for file in files:
        load_image(Path(file))  # an error comes before the model is loaded
    return OneQuestion([files], question)


def prepare_parsing() -> None:
    """Prepare for parsing recipes, once: import plug-ins, quieten libraries, set up the parser."""
    quieten()
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # a plug-in may raise anything
            raise GlimpseError(
                f"The plug-in {plugin.name} ({plugin.value}, entry-point group {PLUGINS}) cannot be imported: "
                f"{type(error).__name__}: {error}. Mend that package, or uninstall it."
            ) from error
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


def run(args: list[str], prepare: Callable[[Any, Any], None] | None = None) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``; ``prepare`` is the argument of :class:`RunCLI`."""
    prepare_parsing()
    if listed := listing(args):
        print(listed)
        return
    args = whole(args)
    check_single_flags(args)
    command_line = shlex.join(["glimpse-lightning", *args])
    check_training_flags(args)
    args = files_as_datasets(args)
    args, config_files = with_recipes([SHORT_FLAGS.get(arg, arg) for arg in args])
    check_vars(args, config_files)
    args, texts = texts_aside(replaced_datasets_anew(args))
    args = pruner_alone(args, [read_yaml(path) for path in config_files])
    before = os.environ.get(RUN_FOLDER)
    # Attention weights below 1e-38 make a training step on a CPU up to 1.8 times as long. The setting has to come
    # before torch starts its threads, which take it over.
    torch.set_flush_denormal(True)
    try:
        RunCLI(args, config_files, prepare, texts, command_line)
    except GlimpseError:
        if before is None and RUN_FOLDER in os.environ:
            RunFolder(Path(os.environ[RUN_FOLDER])).remove_if_not_started()
        raise
    finally:
        torch.set_flush_denormal(False)
        if before is None:
            os.environ.pop(RUN_FOLDER, None)


def _trained_otherwise(folder: Path, config: Mapping[str, Any]) -> str:
    """Why a finished fit is not one of this configuration; empty where it is."""
    saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
    found = differences(renames.current(saved), renames.current(config))
    if found:
        return f"was trained with other settings ({'; '.join(found[:3])})"
    changed = changed_since(folder, "data.train")
    return f"was trained on other contents of {changed[0]}" if changed else ""


def _without_unread(config: Any) -> Any:
    """A configuration whose data module has only the dataset that a command other than `fit` reads, and none where a
    question from the command line replaces it. A user's own data modules are left unchanged.
    """
    command = config.get("subcommand")
    if command not in ("validate", "test", "predict") or "class_path" in config[command].get("data", {}):
        return config
    read = "val" if command == "validate" else "test"
    if command == "predict":
        read = "predict" if config.predict.data.predict is not None else read
        read = read if config.predict.question is None else ""
    config = config.clone()
    for name in {*DATASETS} - {read}:
        config[command].data[name] = None
    return config


def _as_text(path: Path | None) -> str | None:
    return None if path is None else str(path)
