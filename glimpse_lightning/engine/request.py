"""A prefill's request: prompts that are embedded already, and how they are to be pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.trunk_memory import TrunkMemory

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.policies.base import Policy
    from glimpse_lightning.pruner.stage import PruneStage

Select = Callable[["PruneStage", Tensor, VisualTokens], Tensor]
"""Which tokens a stage keeps, in place of its policy: from scores ``[V]`` to a boolean mask ``[V]``."""


@dataclass(frozen=True)
class PrefillRequest:
    """One batch of ``B`` prompts on its way through a prefill.

    Attributes:
        prompt: the embedded prompts, padded on the left.
        key: ``[B]`` stable integer per sample, the seed of random scorers.
        questions: ``B`` raw questions, or none where they are unknown.
        boxes: evidence boxes of each sample's images, ``None`` for a sample without any; empty where unknown.
        state: entries of ``VisualTokens.state`` as the first stage finds it; empty by default.
        select: the decision that replaces the stages' policies; ``None``: the policies decide.
        policies: policies of this request, by the stage whose policy each replaces; empty: the stages' own.
        shared_prefix: the common prefixes that run only once, up to the first stage, or a conversation's, known from an
            earlier turn; ``None``: each sample runs whole.
        scored: whether stages score, as by default. Without, scores are zeros: only for requests where neither
            ``select`` nor a reducer reads them.
        copies: runs of each prompt, in a row, for a ``select`` that draws. The first stage scores one of them for all.
        with_hidden: whether the output holds the last layer's states.
    """

    prompt: Prompt
    key: Tensor
    questions: Sequence[str] = ()
    boxes: Sequence[Any] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    select: Select | None = None
    shared_prefix: SharedPrefix | TrunkMemory | None = None
    policies: Mapping[PruneStage, Policy] = field(default_factory=dict)
    scored: bool = True
    copies: int = 1
    with_hidden: bool = False

    @classmethod
    def of(cls, prompt: Prompt, batch: Batch, **options: Any) -> PrefillRequest:
        """The request for a batch whose prompts are embedded as ``prompt``; ``options`` are further attributes."""
        given = {"shared_prefix": batch.shared, **options}
        return cls(prompt, batch.key, batch.questions, batch.boxes, **given)

    def policy_of(self, stage: PruneStage) -> Policy:
        """The policy by which ``stage`` keeps tokens of these prompts."""
        return self.policies.get(stage, stage.policy)

    def repeated(self) -> PrefillRequest:
        """The request with each sample ``copies`` times in a row; ``copies`` stays the number of equal samples."""
        if self.copies == 1:
            return self
        return replace(
            self,
            prompt=self.prompt.repeated(self.copies),
            key=self.key.repeat_interleave(self.copies),
            questions=[question for question in self.questions for _ in range(self.copies)],
            boxes=[boxes for boxes in self.boxes for _ in range(self.copies)],
        )
