"""AutoPrune's schedule: how much to keep at each of several layers, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import floor_share, rank_in_group
from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires
from glimpse_lightning.scorers.vision_text_rank import INFORMATION, information


class LogisticRatio(Policy):
    """Keeps the best tokens; how many follows a logistic curve over the decoder's layers (AutoPrune, arXiv 2509.23931).

    ``keep(l) = 0.75 / (1 + exp(k (l - (midpoint + k))))``, ``k = max(0.4 - gain * I, 0)``, times a factor that makes
    each sample's tokens, averaged over all layers, ``retention`` (what FLOPs follow, but for the attention's quadratic
    part). ``I = sum_h MI(A_h[T, V]) / |T|`` is the sample's own: in layer 0, of each head's attention from the text
    tokens ``T`` after the image to the visual tokens ``V``, the mutual information in bits of ``A_h[t, v] / sum
    A_h``. Only rows of text queries are computed for it. The more the words differ in where they look, the flatter the
    curve: more tokens go early, and the tokens left stay longer.

    Departures: the method's code prunes after every layer, here ``after_layers`` say where; it recycles tokens in
    clusters, which its factor counts, here there are none. Its ``I`` is that of layer 1, after its first cut, and not
    divided by ``|T|``: with 20 text tokens ours is ``k = 0.38`` where its curve is just flat. Ratios are never above 1,
    and counts are rounded down (there: up).

    Args:
        stage: which of ``after_layers`` this policy's stage prunes after, from 0.
        after_layers: ``after_layer`` of all stages, rising, the first at least 0; numbers, or shares of the depth.
        retention: share of the tokens that ``reach`` is about.
        reach: ``"mean"``: ``retention`` is the average over all layers of the decoder; ``"last"``: what the last stage
            leaves, so that the information moves the earlier stages only (to compare at equal tokens while decoding).
        midpoint: layer about which the curve falls fastest, as a share of the decoder's depth; the method: 14.9 of 32.
        gain: how much a bit of information flattens the curve.
        per, min_tokens: as in ``KeepRatio``.
    """

    layer_arguments = {"after_layers": "decoder"}

    def __init__(
        self,
        stage: int,
        after_layers: Sequence[Layer],
        retention: float,
        reach: Literal["mean", "last"] = "mean",
        midpoint: float = 0.465625,
        gain: float = 0.2,
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
    ) -> None:
        check_fraction("retention", retention)
        check_fraction("midpoint", midpoint)
        check_choice("reach", reach, ("mean", "last"))
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.stage = stage
        self.after_layers: list[int] = list(checked("after_layers", after_layers))
        self.retention = retention
        self.reach = reach
        self.midpoint = midpoint
        self.gain = gain
        self.per = per
        self.min_tokens = min_tokens
        self._check_layers()

    @override
    def number_layers(self, facts: ModelFacts) -> None:
        super().number_layers(facts)
        if len(set(self.after_layers)) < len(self.after_layers):
            raise GlimpseError(
                f"This model is too shallow: of its {facts.num_layers} decoder layers the {len(self.after_layers)} "
                f"stages would prune after {', '.join(map(str, self.after_layers))}, some of which are the same. "
                "Choose a deeper model or another method, or `after_layers` that differ."
            )
        self._check_layers()

    def _check_layers(self) -> None:
        if self.after_layers != sorted(set(self.after_layers)) or not 0 <= self.stage < len(self.after_layers):
            raise GlimpseError(
                "Expected `after_layers` to rise and `stage` to be an index into it, but got layers "
                f"{self.after_layers} and stage {self.stage}."
            )

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0

    @property
    def requires(self) -> Requires:
        return INFORMATION

    def with_budget(self, retention: float | None = None, threshold: float | None = None) -> Policy:
        """A copy that aims at another ``retention``; all stages have to be given the same one."""
        if retention is None or threshold is not None:
            return super().with_budget(retention, threshold)
        check_fraction("retention", retention)
        other = copy(self)
        other.retention = retention
        return other

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        ratio = self.ratios(tokens.facts.num_layers, information(tokens))[self.stage]
        ratio_G = ratio if self.per == "sample" else ratio[tokens.item_sample]
        count = floor_share(ratio_G, total).clamp(min=self.min_tokens)
        return (rank_in_group(scores, group, len(total)) < count[group]) & (scores > -torch.inf)

    def ratios(self, num_layers: int, information: Tensor) -> Tensor:
        """``[stages, S]`` share that each stage keeps, of the tokens before any pruning, from ``information [S]``.

        Raises:
            GlimpseError: where the layers before the first stage alone are more than ``retention``.
        """
        after = torch.tensor(self.after_layers, dtype=torch.float64, device=information.device)[:, None]
        steepness = (0.4 - self.gain * information.double()).clamp(min=0)
        curve = 0.75 * (-steepness * (after - self.midpoint * num_layers - steepness)).sigmoid()
        if self.reach == "last":
            return (self.retention * curve / curve[-1]).clamp(max=1)
        span = torch.cat([after[1:], after.new_full((1, 1), num_layers - 1)]) - after
        budget = self.retention * num_layers - (self.after_layers[0] + 1)
        if budget < 0:
            least = self.after_layers[0] + 1
            raise GlimpseError(
                f"Expected `retention` to be at least {least / num_layers:.3f}, the share of the {least} unpruned "
                f"layers before the first stage, but got {self.retention}. Raise it, prune earlier, or set "
                "`reach: last`."
            )
        low, high = torch.zeros_like(steepness), 1 / curve.amin(0)
        for _ in range(60):  # the layer average rises with the factor
            factor = (low + high) / 2
            short = (span * (factor * curve).clamp(max=1)).sum(0) < budget
            low, high = torch.where(short, factor, low), torch.where(short, high, factor)
        return (high * curve).clamp(max=1)
