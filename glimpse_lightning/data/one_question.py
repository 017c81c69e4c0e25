"""One question about each image of a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from glimpse_lightning.data.images import load_image
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.keys import stable_key


class OneQuestion(Dataset[Sample]):
    """The same question about each image of a folder, in alphabetical order.

    Args:
        folder: folder of images; other files and folders in it are left out.
        question: the question.

    Raises:
        GlimpseError: if there is no image.
    """

    def __init__(self, folder: Path, question: str) -> None:
        known = Image.registered_extensions()
        self.files = sorted(path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file())
        self.question = question
        if not self.files:
            raise GlimpseError(f"{folder}: expected a folder of images, but there is none in it.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        return Sample(
            id=path.name,
            key=stable_key(path.name),
            question=self.question,
            answers=[],
            images=[load_image(path)],
            where=str(path),
            files=[str(path)],
        )
