"""Pruner: one or more prune stages, saved to folders and to the Hub and read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.pruner import files, upstream
from glimpse_lightning.pruner.card import model_card
from glimpse_lightning.pruner.files import SavedPruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.source import NAMES, located


class Pruner(nn.Module, ModelHubMixin):
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

    # -- files ----------------------------------------------------------------------------------------------------

    def saved(self, weights: Mapping[str, Tensor] | None = None) -> SavedPruner:
        """The pruner as its files hold it.

        Args:
            weights: the gathered state of a sharded pruner; by default its own.

        Raises:
            GlimpseError: where it was not built for a model, and has no weights.
        """
        if self.facts is None:
            raise GlimpseError(
                "Expected a pruner that was built for a model, but got one that has no weights yet. Attach it to a "
                "model first: `PrunedVLM(backbone, pruner)`, or `pruner.build(facts)`."
            )
        return SavedPruner(
            self.stages,
            self.facts,
            self.state_dict() if weights is None else weights,
            trained_on=self.trained_on,
            origin=self.origin,
            origin_dtype=self.origin_dtype,
        )

    @override
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Write the pruner and a model card to a folder: all of it, or nothing. A card that is there stays.

        What a pruner was trained on is written with it where it is known: after a ``fit``, after
        ``PrunedVLM.save_pretrained`` or ``gl.save_pruner`` with a backbone, and where it was loaded so.

        Args:
            save_directory: a folder that is new, empty, or holds a saved pruner.
            config: nothing; ``config.json`` is made from the pruner.
            repo_id: ``user/name`` of the repository to upload to; by default the folder's name, below your own.
            push_to_hub: whether to upload it as well.
            model_card_kwargs: arguments of :func:`~glimpse_lightning.pruner.card.model_card`, such as ``license``.
            **options: arguments of :meth:`push_to_hub`.

        Returns:
            Address of the commit, where it was uploaded.

        Raises:
            GlimpseError: where the folder cannot be written or holds something else, or the pruner was not built.
        """
        if config is not None or (options and not push_to_hub):
            unknown = "config" if config is not None else min(options)
            raise GlimpseError(
                f"`save_pretrained` without `push_to_hub=True` has no use for `{unknown}`; leave it out."
            )
        folder = Path(save_directory)
        card, more = folder / files.CARD, {"repo_id": repo_id or f"USER/{folder.name}"} | (model_card_kwargs or {})
        text = card.read_text(encoding="utf-8") if card.is_file() else str(self.generate_model_card(**more))
        files.write_pruner(self.saved(), folder, text)
        return (
            self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **options)
            if push_to_hub
            else None
        )

    @override
    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Upload the pruner with a model card to a repository, which is made where there is none.

        Args:
            repo_id: ``user/name``.
            model_card_kwargs: arguments of :func:`~glimpse_lightning.pruner.card.model_card`, such as ``license``.
            **options: ``commit_message``, ``private``, ``token``, ``branch``, ``create_pr`` and patterns of files, as
                in :meth:`huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            Address of the commit.
        """
        card = {"repo_id": repo_id} | (model_card_kwargs or {})
        return str(super().push_to_hub(repo_id, model_card_kwargs=card, **options))

    @override
    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that an upload begins with: what is pruned, of which model, and how to load it."""
        return model_card(self.saved(), **kwargs)

    @classmethod
    @override
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, any_backbone: bool = False, **where: Any
    ) -> Self:
        """A pruner from a folder or a repository of the Hub; the same as :func:`gl.load_pruner`.

        Args:
            pretrained_model_name_or_path: the folder, or the repository's id.
            any_backbone: whether it may be attached to a model of other weights than those it was trained on.
            **where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

        Raises:
            GlimpseError: where there is no pruner, or an incomplete one, or a revision is given with a folder.
        """
        if unknown := sorted(where.keys() - {*NAMES}):
            raise GlimpseError(f"`load_pruner` has no argument {unknown[0]!r}.{nearest(unknown[0], NAMES)}")
        name = pretrained_model_name_or_path
        folder = files.pruner_folder(name, located(str(name), name, where))
        reference = (folder / files.UPSTREAM_WEIGHTS).is_file()
        saved = upstream.read_pruner(folder) if reference else files.read_pruner(folder)
        pruner = cls(saved.stages)
        pruner.origin, pruner.origin_dtype, pruner.source = saved.origin, saved.origin_dtype, str(name)
        pruner.trained_on = None if any_backbone else saved.trained_on
        with torch.random.fork_rng(devices=[]):  # first values are drawn only to be replaced
            try:
                pruner.build(saved.facts)
            except (ValueError, TypeError) as error:
                raise files.cannot_run(folder, error) from error
        try:
            pruner.load_state_dict(saved.weights)
        except RuntimeError as error:
            raise files.other_weights(
                folder / (files.UPSTREAM_WEIGHTS if reference else files.WEIGHTS), error
            ) from error
        return pruner.eval()

    # -- running --------------------------------------------------------------------------------------------------

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
