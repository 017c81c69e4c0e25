"""``publish``: a run's pruner on the Hub, with a model card made from the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import model_info

from glimpse_lightning.backbones.embedded import EMBEDDED
from glimpse_lightning.backbones.presets import PREFIX
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.cli.run_card import MeasuredRun, check_alike, sections
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import show

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
REFINED = ("adapter", "model")
"""Folders of a fit with weights of the language model that its figures depend on."""


def run(args: Sequence[str]) -> None:
    """Publish what the command line names, or write the same files to a folder.

    Raises:
        GlimpseError: where a run has no figures or no pruner, or the base model has no name on the Hub.
    """
    parser = CommandParser("publish", __doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a finished fit or test; further ones: the same recipe with other seeds, for the card's table",
    )
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository, made where there is none")
    parser.add_argument("--output", type=Path, help="write the files to this new folder, and upload nothing")
    parser.add_argument("--pruner", type=Path, help="folder of the pruner; default: that of the first run")
    parser.add_argument("--base", help="the base model on the Hub; default: the one that the run names")
    parser.add_argument("--license", help="licence of the base model (apache-2.0); default: what its page says")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository a private one")
    parser.add_argument("--branch", help="branch to upload to; default: main")
    parser.add_argument("--create_pr", action="store_true", default=None, help="open a pull request with the upload")
    given = parser.parse_args(list(args))
    if not REPOSITORY.fullmatch(given.repo):
        raise GlimpseError(f"Expected `--repo` to be USER/NAME, but got {given.repo!r}.")
    first, *others = given.runs
    runs = [MeasuredRun.read(first, given.pruner), *map(MeasuredRun.read, others)]
    check_alike(runs)
    pruner = Pruner.from_pretrained(runs[0].pruner)
    _check_base_weights(runs[0], given.base)
    base = given.base or base_of(pruner, runs[0])
    if pruner.trained_on is not None:
        pruner.trained_on = pruner.trained_on | {"backbone": base}
    licence = given.license or licence_of(base, runs[0].results.get("revision"))
    card = {"license": licence, "revision": runs[0].results.get("revision"), "sections": sections(runs)}
    card["base_model"] = base
    if licence is None:
        show(f"The licence of {base} could not be read; name it with --license, or the card says that it is not known.")
    if given.output is not None:
        _write(pruner, given.output, given.repo, card)
    else:
        options = {name: getattr(given, name) for name in ("private", "branch", "create_pr")}
        message = f"Upload the pruner of {runs[0].results['recipe']}"
        show(pruner.push_to_hub(given.repo, commit_message=message, model_card_kwargs=card, **options))


def _write(pruner: Pruner, folder: Path, repo: str, card: dict[str, Any]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GlimpseError(f"Expected `--output` to be a new or empty folder, but {folder} holds something.")
    pruner.save_pretrained(folder, repo_id=repo, model_card_kwargs=card)
    show(f"{folder}: upload it with `hf upload {repo} {folder}`.")


def _check_base_weights(run: MeasuredRun, base: str | None) -> None:
    """Raise where the figures are also those of a language model that the run has trained."""
    refined = [run.pruner.parent / name for name in REFINED if (run.pruner.parent / name).is_dir()]
    if refined and base is None:
        raise GlimpseError(
            f"The figures of {run.folder} are of its pruner with the language model in {refined[0]}. Upload that model "
            "(adapters: after `export --merge-lora`), and name it with --base."
        )


def base_of(pruner: Pruner, run: MeasuredRun) -> str:
    """Name of the base model.

    Raises:
        GlimpseError: where only a folder of this machine is known, or random weights.
    """
    name = str((pruner.trained_on or {}).get("backbone") or run.results.get("backbone") or "")
    if name in EMBEDDED or (REPOSITORY.fullmatch(name) and not Path(name).exists()):
        return name
    what = "random weights" if name.startswith(PREFIX) else "a folder of this machine"
    raise GlimpseError(
        f"Expected the base model to have a name that others can load, but {name!r} is {what}. Name it with --base "
        "OWNER/NAME."
    )


def licence_of(base: str, revision: str | None) -> str | None:
    """The licence that a model's page names; ``None`` where it cannot be read."""
    if base in EMBEDDED:
        own = metadata("glimpse-lightning").json.get("license_expression")
        return str(own).lower() if own else None
    try:
        data = model_info(base, revision=revision).card_data
    except Exception:  # hub clients raise a dozen unrelated types; a card can do without
        return None
    return str(data.get("license")) if data and data.get("license") else None
