"""One question, asked about several images one after another."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import Dataset

from glimpse_lightning.data.digest import of_file
from glimpse_lightning.data.images import load_image
from glimpse_lightning.data.raw_batch import OnError
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.keys import stable_key


class OneQuestion(Dataset[Sample]):
    """The same question about each group of images.

    Args:
        groups: paths of the images that are asked about together, for each time that the question is asked.
        question: the question.
        names: ids of the samples, which also seed their random choices; default: the first image's name without its
            ending, and the seed 0.
        on_error: treatment of an image that cannot be read: ``raise`` stops, ``skip`` leaves its question out and
            counts it.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        question: str,
        names: Sequence[str] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.groups, self.question, self.names, self.on_error = groups, question, names, on_error

    @classmethod
    def about_each(cls, folder: Path, question: str) -> OneQuestion:
        """The question about each image of a folder, in alphabetical order; other files in it are left out, and
        damaged images are left out and counted. Subfolders are not read (they may hold pictures of an earlier run), but
        those with images are named.

        Raises:
            GlimpseError: if there is no image.
        """
        known = Image.registered_extensions()
        files, below = _images(folder, known), [each for each in sorted(folder.iterdir()) if each.is_dir()]
        filled = [each.name for each in below if _images(each, known)]
        named = ", ".join(filled[:3]) + (", ..." if len(filled) > 3 else "")
        if not files:
            hint = f" There are some in its subfolders ({named}): name one of these." if filled else ""
            raise GlimpseError(f"{folder}: expected a folder of images, but there is none in it.{hint}")
        if filled:
            rank_zero_warn(
                f"{folder}: subfolders are not read, though some hold images ({named}). Ask about each alone."
            )
        return cls([[str(path)] for path in files], question, [path.name for path in files], "skip")

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Sample:
        files = list(self.groups[index])
        return Sample(
            id=Path(files[0]).stem if self.names is None else self.names[index],
            key=0 if self.names is None else stable_key(self.names[index]),
            question=self.question,
            answers=[],
            images=[load_image(Path(file)) for file in files],
            where=", ".join(files),
            files=files,
        )

    def identity(self, index: int) -> list[Any]:
        """The question, and the identities of its image files."""
        return [self.question, [of_file(Path(), file) for file in self.groups[index]]]


def _images(folder: Path, known: Container[str]) -> list[Path]:
    """Files of a folder that look like images."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file())
