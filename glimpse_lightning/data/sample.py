"""A visual question: the element of every dataset and the input of every collator."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

from PIL import Image

from glimpse_lightning.runtime.errors import GlimpseError

Box = tuple[float, float, float, float]
"""``(x1, y1, x2, y2)``, each in [0, 1], relative to the width and height of its image."""


@dataclass
class Sample:
    """A question about zero or more images, with its reference answers.

    Attributes:
        id: name of the sample, unique within its dataset; appears in errors and in saved predictions.
        key: stable non-negative integer below 2**63, the seed of all random choices for this sample.
        question: question in the user's words, without image placeholders or chat template.
        answers: reference answers; the first one is the training target.
        images: RGB images in the order in which they precede the question, upright
            (``PIL.ImageOps.exif_transpose``).
        boxes: evidence boxes of each image; ``None``: not annotated.
        family: question family, by which metrics are grouped; ``""`` for none.
        where: place in the data file, shown in errors; ``""``: errors show the id.
        files: path of each image, as the data names it; ``""`` for an image without one.

    Raises:
        GlimpseError: where images or answers are no list.

    Examples:
        >>> from PIL import Image
        >>> page = Image.new("RGB", (224, 224), "white")
        >>> gl.Sample(question="What is drawn here?", answers=["nothing"], images=[page]).answers
        ['nothing']
    """

    id: str = ""
    key: int = 0
    question: str = ""
    answers: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    boxes: list[list[Box]] | None = None
    family: str = ""
    where: str = ""
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, kind, example in (("images", "images", "image"), ("answers", "texts", '"text"')):
            given = getattr(self, name)
            if not isinstance(given, (list, tuple)):
                raise GlimpseError(
                    f"Expected `{name}` of a sample to be a list of {kind}, but got an instance of "
                    f"{type(given).__name__}; write `{name}=[{example}]`, also for one."
                )

    @property
    def place(self) -> str:
        """Name of the sample in errors."""
        return self.where or f"sample {self.id!r}"

    def content(self) -> str:
        """A digest of question, answers and pixels, independent of the sample's name."""
        digest = blake2b(digest_size=16)
        for part in (self.question, *self.answers):
            digest.update(f"{len(part)}:{part}".encode(errors="surrogatepass"))
        self._add_pixels(digest)
        return digest.hexdigest()

    @cached_property
    def image_name(self) -> str:
        """A digest of all pixels, equal for questions about the same images; ``""`` without images."""
        digest = blake2b(digest_size=8)
        self._add_pixels(digest)
        return digest.hexdigest() if self.images else ""

    def _add_pixels(self, digest: blake2b) -> None:
        for image in self.images:
            digest.update(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())


BLANK = Sample(id="", key=0, question="What?", answers=["nothing"], images=[Image.new("RGB", (224, 224), "white")])
"""Stand-in for a batch without usable samples; every processor accepts it."""
