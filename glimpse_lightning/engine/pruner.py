"""PruneStage and Pruner: where in the model visual tokens are scored and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from glimpse_lightning.core.layers import Layer, Layered, checked
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires, Scorer

EarlyKV = Literal["prune", "keep"]
Positions = Literal["keep", "renumber"]


class PruneStage(Layered, nn.Module):
    """*Where* (before layer 0, or after a decoder layer) + scorer + policy + reducer.

    Args:
        after_layer: 0-based index of the last layer that runs on all tokens; -1 = before layer 0. At or beyond the
            model's last layer only the KV cache that decoding reads is pruned. A number between 0 and 1 is the share of
            the layers that run on all tokens (``Layered.number_layers``): 0.25 is layer 7 of 32, or 1 of 8.
        scorer: source of one score for each visual token.
        policy: rule that turns scores into a keep mask.
        reducer: treatment of the dropped tokens; by default they are removed (``Drop``).
        early_kv: treatment of the KV cache of layers up to ``after_layer``. ``prune``: dropped tokens are removed.
            ``keep``: this stage leaves it unchanged, so cache lengths differ by layer (FastV, PyramidDrop, SparseVLM).
        positions: position ids of the kept tokens in later layers. ``keep``: they stay the original ones, and decoding
            goes on at the original next position. ``renumber``: the gaps are closed
            (:meth:`~.prompt_cache.PromptColumns.renumbered`), and in those layers decoding goes on at the new next
            position (PyramidDrop's and VScan's LLaVA).

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
        >>> type(stage.reducer).__name__
        'Drop'
    """

    layer_arguments = {"after_layer": "decoder"}

    def __init__(
        self,
        after_layer: Layer,
        scorer: Scorer,
        policy: Policy,
        reducer: Reducer | None = None,
        early_kv: EarlyKV = "prune",
        positions: Positions = "keep",
    ) -> None:
        super().__init__()
        check_choice("early_kv", early_kv, ("prune", "keep"))
        check_choice("positions", positions, ("keep", "renumber"))
        self.after_layer: int = checked("after_layer", after_layer)
        if self.after_layer < -1:
            raise ValueError(f"Expected `after_layer` to be -1 (before layer 0) or more, but got {after_layer}.")
        self.scorer = scorer
        self.policy = policy
        self.reducer = Drop() if reducer is None else reducer
        self.early_kv: EarlyKV = early_kv
        self.positions: Positions = positions

    @property
    def requires(self) -> Requires:
        """The inputs that the stage's parts require; valid once the scorer is built."""
        return self.scorer.requires | self.policy.requires | self.reducer.requires


class Pruner(nn.Module):
    """One or more prune stages.

    Args:
        stages: the stages in the order in which they run; ``after_layer`` must not decrease.

    Raises:
        GlimpseError: for anything but a list of stages in that order.

    Attributes:
        facts: sizes of the model that the pruner was built for; ``None`` before it is built.
        origin: the reference's ``config.json`` where the pruner was read from one, so that it can be written back.
        origin_dtype: the data type that its weights had there, such as ``"bfloat16"``.
        trained_on: name and fingerprint of the model it was trained on, where it was saved with them.
        source: the folder or repository that it was read from; ``""`` where it was not read.

    Examples:
        >>> scorer, policy = gl.scorers.AttentionRank, gl.policies.KeepRatio
        >>> pruner = gl.Pruner([gl.PruneStage(1, scorer(), policy(0.5)), gl.PruneStage(4, scorer(), policy(0.1))])
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> [int(keep.sum()) for keep in model.prefill(**batch.inputs).keep]
        [128, 25]
    """

    def __init__(self, stages: Sequence[PruneStage]) -> None:
        super().__init__()
        _check_stages(stages)
        if not any(isinstance(stage.after_layer, float) for stage in stages):  # shares: once there is a model
            _check_order(stages)
        self.stages: list[PruneStage] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.facts: ModelFacts | None = None
        self.origin: dict[str, Any] | None = None
        self.origin_dtype: str | None = None
        self.trained_on: dict[str, Any] | None = None
        self.source = ""

    def build(self, facts: ModelFacts) -> None:
        """Create the weights whose sizes depend on the model, and number the layers given as shares of its depth.
        Building twice for equal facts does nothing.

        Raises:
            GlimpseError: where this pruner was built for a model of another shape, or does not fit this one.
        """
        if self.facts is not None:
            check_facts(self.facts, facts)
            return
        for stage in self.stages:
            for part in (stage, stage.scorer, stage.policy, stage.reducer):
                part.number_layers(facts)
        _check_order(self.stages)
        glimpse = False
        for stage in self.stages:
            if stage.after_layer >= facts.num_layers and stage.early_kv == "prune":
                rank_zero_warn(
                    f"A stage after layer {stage.after_layer} of a model with {facts.num_layers} (counted from 0) "
                    "prunes the KV cache only: every layer of the prefill runs on all tokens. An earlier `after_layer` "
                    "saves those, a share of the depth such as 0.5 on every model."
                )
            if stage.early_kv == "keep" and stage.after_layer >= facts.num_layers - 1:
                if stage.after_layer >= facts.num_layers:
                    raise GlimpseError(
                        f"Expected `after_layer` below {facts.num_layers}, the number of the backbone's decoder "
                        f"layers, but got {stage.after_layer}; choose an earlier layer."
                    )
                raise GlimpseError(
                    f"A stage after layer {stage.after_layer} (counted from 0) of {facts.num_layers} prunes the KV "
                    "cache only, so with `early_kv: keep` nothing; choose an earlier layer, or `early_kv: prune`."
                )
            stage.scorer.build(facts, stage.after_layer)
            if stage.scorer.shares_glimpse and not glimpse:
                raise GlimpseError(
                    "Expected a stage with glimpse tokens of its own before one whose scorer `shares_glimpse`. "
                    "Leave that out, or put such a stage before it."
                )
            glimpse |= stage.scorer.glimpse is not None
        self.facts = facts

    def with_budgets(
        self, retention: float | Sequence[float] | None = None, threshold: float | Sequence[float] | None = None
    ) -> dict[PruneStage, Policy]:
        """Policies with other budgets, by the stage whose policy each replaces; empty where none is asked for.

        Args:
            retention: share of the tokens before any pruning to keep, of several stages one for each.
            threshold: value that a score has to exceed, likewise.

        Raises:
            GlimpseError: where both are given, a policy has no such budget, or there are not as many as stages.
            ValueError: for a value out of range.
        """
        asked = {"retention": retention, "threshold": threshold}
        given = {name: value for name, value in asked.items() if value is not None}
        if len(given) > 1:
            raise GlimpseError("Expected either `retention` or `threshold`, but got both.")
        found: dict[PruneStage, Policy] = {}
        for name, value in given.items():
            values = [value] if isinstance(value, (int, float)) else [*value]
            if len(values) != len(self.stages):
                raise GlimpseError(
                    f"Expected a `{name}` for each of the pruner's {len(self.stages)} stages, as a list, but got "
                    f"{value}."
                )
            for stage, each in zip(self.stages, values, strict=True):
                found[stage] = stage.policy.with_budget(**{name: float(each)})
        return found

    def riding_glimpse(self) -> tuple[int, int]:
        """``(number, last layer)`` of the glimpse tokens that run in a prefill's own calls of the layers."""
        number, last = 0, -1
        for stage in self.stages:
            if any(probe.query == "glimpse" for probe in stage.requires.probes.values()):
                if stage.scorer.glimpse is not None:
                    if number:  # those of a later stage run as a side stream
                        break
                    number = stage.scorer.glimpse.length
                last = stage.after_layer
        return number, last


def _check_stages(stages: Any) -> None:
    if isinstance(stages, PruneStage) or not isinstance(stages, Iterable):
        raise GlimpseError(
            f"Expected a list of stages, as in `Pruner([stage])`, but got an instance of {type(stages).__name__}."
        )
    for stage in stages:
        if not isinstance(stage, PruneStage):
            raise GlimpseError(
                f"Expected the stages of a pruner to be of class PruneStage, but got {type(stage).__name__}; a scorer "
                "and a policy go into one, as in `Pruner([PruneStage(after_layer, scorer, policy)])`."
            )


def _check_order(stages: Sequence[PruneStage]) -> None:
    layers = [stage.after_layer for stage in stages]
    if not layers or layers != sorted(layers):
        raise GlimpseError(f"Expected at least one stage, ordered by `after_layer`, but got layers {layers}.")


def check_facts(built: ModelFacts, actual: ModelFacts) -> None:
    """Raise unless a pruner built for ``built`` fits a model of ``actual``."""
    differences = [
        f"{name}: {getattr(built, name)} != {getattr(actual, name)}"
        for name in ("num_layers", "num_heads", "hidden_size", "vision_layers", "vision_hidden_size")
        # 0 = unknown: the reference's LLaVA checkpoints do not tell the depth of the vision tower.
        if getattr(built, name) and getattr(built, name) != getattr(actual, name)
    ]
    if differences:
        raise GlimpseError(
            f"This pruner was built for a backbone of another shape (pruner != backbone: {'; '.join(differences)}). "
            "Load the backbone it was trained on, or train a pruner for this one."
        )
