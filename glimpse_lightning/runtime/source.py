"""Location of the files of a model or a pruner: one object, passed to everything that reads one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class Source:
    """Version and location of the files of a model or a pruner, as given in recipes.

    There is no field for a token, because recipes and configurations are saved to disk. A token comes from ``hf auth
    login`` or the environment variable ``HF_TOKEN``.

    Args:
        revision: branch, tag or commit on the Hub; default: its main branch.
        cache_dir: folder that downloads are kept in; default: Hugging Face's (`HF_HOME`).
        local_files_only: whether to read downloaded files only, without network; default: `HF_HUB_OFFLINE`.
    """

    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool | None = None

    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``; fields that are ``None`` are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FIELDS = tuple(entry.name for entry in fields(Source))
NAMES = (*FIELDS, "token")
"""Arguments of ``from_pretrained`` and ``snapshot_download`` that locate files."""


def located(name: str, place: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``options`` that locate the files of ``name``, without those that are ``None``.

    Args:
        name: name that errors show.
        place: folder or hub id.
        options: arguments of a function that loads something.

    Raises:
        GlimpseError: if ``options`` ask for a revision of a folder, which has none.
    """
    found = {key: options[key] for key in NAMES if options.get(key) is not None}
    if "revision" in found and Path(place).is_dir():
        raise GlimpseError(
            f"Expected no `revision` for {name!r}, whose files are in a folder of this machine, but got "
            f"{found['revision']!r}: only repositories of the Hub have revisions. Leave it out, or name a hub id."
        )
    return found
