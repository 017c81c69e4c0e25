"""Some samples of a dataset: those that a resumed run has not answered yet, or the first ones."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch.utils.data import Dataset

from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import BadSampleError


class Some(Dataset[Sample]):
    """Some samples of a dataset.

    Args:
        dataset: the samples.
        indices: indices of the chosen samples.
        rest: whether they are the remaining samples of a resumed run, all of which may be bad.
    """

    def __init__(self, dataset: Dataset[Sample], indices: Sequence[int], rest: bool = False) -> None:
        self.dataset, self.indices, self.rest = dataset, indices, rest
        self.on_error = getattr(dataset, "on_error", "raise")

    @property
    def ids(self) -> list[str] | None:
        """Names of the samples; ``None`` if the dataset has to read samples for them."""
        names = getattr(self.dataset, "ids", None)
        return None if names is None else [names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]


def unanswered(dataset: Dataset[Sample], answered: Container[str]) -> Dataset[Sample]:
    """The samples whose ids are not in ``answered``; the dataset itself if no id is.

    If all samples are answered, the result is the first sample, because a loader must not be empty. Its answer must not
    be counted again.
    """
    indices = range(len(dataset))  # type: ignore[arg-type]
    names = getattr(dataset, "ids", None) or [_name(dataset, index) for index in indices]
    rest = [index for index in indices if names[index] not in answered]
    return dataset if len(rest) == len(indices) else Some(dataset, rest or [0], rest=True)


def _name(dataset: Dataset[Sample], index: int) -> str | None:
    """A sample's id; ``None`` if the sample cannot be read. It then stays in the dataset, and ``on_error`` applies when
    it is read.
    """
    try:
        return dataset[index].id
    except BadSampleError:
        return None
