"""Where the files of a model or a pruner are: said once, and handed to everything that reads one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class Source:
    """Version and place of the files of a model or a pruner, as recipes say them.

    A token has no place here, because recipes and configurations are written down: it comes from ``hf auth login`` or
    the environment variable ``HF_TOKEN``.

    Args:
        revision: branch, tag or commit on the Hub; default: its main branch.
        cache_dir: folder that downloads are kept in; default: Hugging Face's (`HF_HOME`).
        local_files_only: whether to read what has been downloaded and ask no network; default: `HF_HUB_OFFLINE`.
    """

    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool | None = None

    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``, without those that are not given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FIELDS = tuple(entry.name for entry in fields(Source))
NAMES = (*FIELDS, "token")
"""Arguments of ``from_pretrained`` and ``snapshot_download`` that say where files are."""


def located(name: str, place: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that say where the files of ``name`` are, without what is ``None``.

    Args:
        name: as the caller called it, for errors.
        place: folder or hub id.
        options: arguments of a function that loads something.

    Raises:
        GlimpseError: where a revision of a folder is asked for, which has none.
    """
    found = {key: options[key] for key in NAMES if options.get(key) is not None}
    if "revision" in found and Path(place).is_dir():
        raise GlimpseError(
            f"Expected no `revision` for {name!r}, whose files are in a folder of this machine, but got "
            f"{found['revision']!r}: only repositories of the Hub have revisions. Leave it out, or name a hub id."
        )
    return found
