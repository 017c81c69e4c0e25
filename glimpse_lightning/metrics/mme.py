"""MME: pairs of yes-or-no questions about an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.metrics.rows import RowMetric
from glimpse_lightning.metrics.text import AnswerMetric, group_names
from glimpse_lightning.runtime.keys import stable_key

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION


def read_mme(answer: str) -> str:
    """``yes``, ``no`` or ``other``: the word, its first letter alone, or a word within the first four letters.

    MME's own reading (from Otter, also lmms-eval's): lower case without periods; ``y`` and ``n`` count; ``yes`` is
    looked for before ``no``, anywhere in the first four letters (``"know"`` means no).
    """
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


class MME(RowMetric, AnswerMetric):
    """Points of MME (Fu et al., arXiv 2306.13394).

    Points of a category: the share of right answers plus the share of images with both questions right, each in
    percent, so at most 200. ``perception`` sums ten categories (at most 2000), ``cognition`` four (800), ``total``
    both. Images without exactly two questions, which a limit on the questions can cause, count in ``incomplete`` only.

    Ids of questions about one image differ only after a ``#``, and the family is the category.
    """

    columns = {"image": torch.int64, "category": torch.int64, "right": torch.int64}

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if yes or no is right, else 0."""
        return float(read_mme(prediction) == read_mme(references[0]))

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        ids: Sequence[str] = (),
        families: Sequence[str] = (),
    ) -> None:
        """Add questions; ``ids`` and ``families`` are needed.

        Raises:
            ValueError: if ids or families are missing, or a family is no category of MME.
        """
        if not len(ids) == len(families) == len(predictions):
            raise ValueError("Expected `ids` and `families` of every question: MME counts by image and category.")
        if unknown := sorted(set(families) - set(CATEGORIES)):
            raise ValueError(f"Expected MME's categories as families, out of {CATEGORIES}, but got {unknown[0]!r}.")
        super().update(predictions, references, ids, families)
        scores = [self.score(*pair) for pair in zip(predictions, references, strict=True)]
        self.add_rows(
            image=torch.tensor([stable_key(name) for name in group_names(ids, families)], dtype=torch.int64),
            category=torch.tensor([CATEGORIES.index(family) for family in families], dtype=torch.int64),
            right=torch.tensor(scores),
        )

    def compute(self) -> dict[str, Tensor]:
        """``total``, ``perception``, ``cognition``, ``incomplete`` and each category with questions, fp32."""
        images, place, counts = self.column("image").unique(return_inverse=True, return_counts=True)
        zeros = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        right = zeros.index_add(0, place, self.column("right"))
        category = zeros.index_copy(0, place, self.column("category"))
        whole = counts == 2
        points: dict[str, Tensor] = {}
        for index, name in enumerate(CATEGORIES):
            chosen = right[whole & (category == index)]
            if len(chosen):
                # Whole numbers until here, so that the result does not depend on the order of questions.
                points[name] = (50 * chosen.sum() + 100 * (chosen == 2).sum()).double() / len(chosen)
        sums = {
            side: sum((points[name] for name in names if name in points), torch.zeros((), dtype=torch.float64))
            for side, names in {"perception": PERCEPTION, "cognition": COGNITION}.items()
        }
        incomplete = (~whole).sum()
        figures = {"total": sums["perception"] + sums["cognition"], **sums, "incomplete": incomplete, **points}
        return {name: value.float() for name, value in figures.items()}
