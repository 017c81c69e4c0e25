"""``export``: a saved pruner in another format; or adapters, merged into their model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.embedded import source_of
from glimpse_lightning.backbones.load import saved_dtype
from glimpse_lightning.backbones.lora import base_model, load_lora, merge_lora
from glimpse_lightning.cli.command_parser import CommandParser
from glimpse_lightning.model.storage import load_pruner, save_pruner
from glimpse_lightning.pruner.files import whole_or_nothing
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.upstream_export import write_upstream
from glimpse_lightning.runtime.dtypes import AUTO
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_json
from glimpse_lightning.runtime.terminal import show
from glimpse_lightning.runtime.whole_files import replacing


def run(args: Sequence[str]) -> Path:
    """Export what the command line names; returns the folder that was written.

    Raises:
        GlimpseError: where pruner or adapters cannot be read, or the format cannot describe them.
    """
    parser = CommandParser("export", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pruner", help="folder or hub id of a saved pruner, this package's or the reference's")
    what.add_argument(
        "--merge-lora",
        metavar="ADAPTER",
        help="folder of LoRA adapters (a run's `adapter/`), which are merged into their model: a plain Hugging Face "
        "folder, that any `--model.backbone` can name",
    )
    parser.add_argument("--output", required=True, help="folder to write; a pruner that is there is replaced")
    parser.add_argument(
        "--format",
        choices=("upstream", "glimpse"),
        default="glimpse",
        help="upstream: GlimpsePrune's config.json + new_modules_gp.pt; glimpse: this package's (default)",
    )
    parser.add_argument(
        "--base",
        help="folder or hub id of the base model; default: the one that pruner or adapters name. With upstream its "
        "config.json (as published) goes along: GlimpsePrune's loader replaces its model's configuration by that file",
    )
    parser.add_argument(
        "--dtype", default=AUTO, help="--merge-lora: data type of the merged weights; default: as the model is stored"
    )
    parser.add_argument("--revision", help="version of --pruner, or with --merge-lora of the model, on the Hub")
    options = parser.parse_args(list(args))
    if options.merge_lora is not None:
        return _merge(Path(options.merge_lora), options.base, Path(options.output), options.dtype, options.revision)
    if options.base is not None and options.format != "upstream":
        raise GlimpseError("Expected `--base` with `--format upstream` or `--merge-lora` only; leave it out.")
    pruner, folder = load_pruner(options.pruner, revision=options.revision), Path(options.output)
    if options.format == "glimpse":
        return save_pruner(pruner, folder)
    base = _base_fields(options.base, pruner)
    with whole_or_nothing(folder) as temporary:
        write_upstream(pruner, temporary, base)
    return folder


def _base_fields(name: str | None, pruner: Pruner) -> dict[str, Any] | None:
    """Contents of the base model's ``config.json``: of the model asked for, else of the one in the pruner's files.

    ``None`` where the pruner was read with such fields, or where no model is known.
    """
    if name is not None:
        return read_json(_config_file(name))
    if pruner.origin is not None:
        return None
    try:
        return read_json(_config_file((pruner.trained_on or {})["backbone"]))
    except Exception:  # hub clients raise a dozen unrelated types
        show("The exported config.json lacks fields of the base model that GlimpsePrune reads: name it with --base.")
        return None


def _config_file(name: str) -> Path:
    """The ``config.json`` of a model: embedded, in a folder, or on the Hub."""
    folder = Path(source_of(name)).expanduser()
    on_hub = not folder.is_dir() and len(folder.parts) == 2 and not name.startswith((".", "~"))
    return Path(hf_hub_download(name, "config.json")) if on_hub else folder / "config.json"


def _merge(adapter: Path, base: str | None, folder: Path, dtype: str, revision: str | None) -> Path:
    """Write the model that ``adapter`` belongs to, with its updates in the weights."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GlimpseError(
            f"Expected `--output` to be a new or empty folder for a model, but {folder} holds something."
        )
    base = base or base_model(adapter)
    kind = saved_dtype(base, revision=revision) if dtype == AUTO else dtype
    backbone = load_backbone(base, dtype=kind, revision=revision)
    load_lora(backbone, adapter)
    merge_lora(backbone)
    with replacing(folder) as draft:
        backbone.save(draft)
    return folder
