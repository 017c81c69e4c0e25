"""VLMModule: a Lightning module that holds a vision-language model and its pruner, and answers questions."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, distributed
from torch.distributed import DeviceMesh
from typing_extensions import override

from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.embedded import source_of
from glimpse_lightning.backbones.presets import PREFIX
from glimpse_lightning.backbones.shares import load_shares
from glimpse_lightning.core.layers import Layer
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.reader import BatchReader
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.answers import answers, greedy, prefill
from glimpse_lightning.evaluation.evaluator import kept_and_total
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.resolution import ResolutionCut, check_fewer
from glimpse_lightning.model.sharding import shard
from glimpse_lightning.model.storage import load_pruner
from glimpse_lightning.objectives.rollouts import one_more
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import EarlyKV, Positions, PruneStage
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.source import Source
from glimpse_lightning.scorers.base import Scorer

GATHERED: dict[Any, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Data type in which sharded weights are gathered, by the trainer's precision. The shards keep their own data type."""


class VLMModule(BatchReader):
    """A backbone and its pruner as a Lightning module, which answers the questions of a data module.

    The pruner is given as one stage (``after_layer``, ``scorer``, ``policy`` and ``reducer``), as several ``stages``,
    or as a saved ``pruner``. Without any of these, and without ``resolution``, the module is the full model.

    Args:
        backbone: ``glimpse-tiny``, a hub id or a folder; in Python also a loaded backbone.
        dtype: data type of the backbone's weights; default: as they were saved, and float32 for glimpse-tiny and if an
            objective trains them; `auto`: as they were saved, but float32 in place of half precision if the device is
            slow at it.
        attn_implementation: attention kernel of the backbone; or one for each part of it, as ``{text_config: eager,
            vision_config: sdpa}``.
        processor: settings of the backbone's image processor by name: `{min_pixels: 200704, max_pixels: 1605632}` for
            Qwen-VL, `{do_pad: true}` for LLaVA-1.5; default: as saved with it.
        source: version (`revision`) of the backbone on the Hub, and folder of downloads.
        after_layer: 0-based index of the last decoder layer that runs on all tokens; -1 = prune before layer 0; a
            number between 0 and 1 = the share of layers that run on all tokens.
        scorer: component that scores each visual token.
        policy: component that turns scores into a keep mask.
        reducer: treatment of dropped tokens; default: they are removed.
        early_kv: whether layers up to ``after_layer`` `keep` the keys and values of dropped tokens; default: `prune`.
        positions: positions of the kept tokens: `keep` leaves them unchanged (default), `renumber` closes the gaps.
        stages: several prune stages, in order.
        resolution: resolution cut (`{ratio: 0.11}` or `{max_pixels: 50176}`) in place of a pruner. The full model still
            gets whole images, and tokens are counted relative to theirs.
        pruner: folder or hub id of a saved pruner, with its own layers, scorers and policies; ``policy`` replaces its
            policies.
        pruner_source: version of the saved pruner on the Hub, and folder of downloads.
        retention: share of visual tokens to keep, in place of the budget of recipe or saved pruner; of several stages a
            list.
        threshold: threshold in place of that of ``Threshold`` policies, likewise.
        max_new_tokens: length of the longest answer.
        allow_empty: whether policies may keep no token (methods like VTW) and layers may lie beyond the model, where
            only the KV cache is pruned; default: an error.
        any_backbone: whether a saved pruner may have been trained on a backbone with other weights; default: an error.

    Attributes:
        resumable: whether a stopped evaluation goes on where it was; else it starts again, in the same folder.
        trainable: glob patterns over the names of ``PrunedVLM.named_parameters()``: parameters to train.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> module = gl.VLMModule(
        ...     "glimpse-tiny", after_layer=3, scorer=gl.scorers.AttentionRank(), policy=gl.policies.TopK(32)
        ... )
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> data = gl.VQAData(test=gl.GlyphVQA("test", size=1), num_workers=0)
        >>> trainer.predict(module, data)[0]["answers"]
        ['heart B']
    """

    resumable = False

    def __init__(
        self,
        backbone: str = "glimpse-tiny",
        dtype: str | None = None,
        attn_implementation: str | dict[str, str] = "sdpa",
        processor: dict[str, Any] | None = None,
        source: Source = Source(),
        after_layer: Layer | None = None,
        scorer: Scorer | None = None,
        policy: Policy | None = None,
        reducer: Reducer | None = None,
        early_kv: EarlyKV | None = None,
        positions: Positions | None = None,
        stages: list[PruneStage] | None = None,
        pruner: str | None = None,
        pruner_source: Source = Source(),
        resolution: ResolutionCut | None = None,
        retention: float | list[float] | None = None,
        threshold: float | list[float] | None = None,
        max_new_tokens: int = 32,
        allow_empty: bool = False,
        any_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold trained parameters only; `load_state_dict` checks them itself
        if isinstance(backbone, Backbone) and (processor or source.options()):
            raise GlimpseError(
                "Expected `processor` and `source` with the name of a backbone, but got a loaded one: they are "
                "arguments of `load_backbone`."
            )
        if pruner is None and pruner_source.revision is not None:
            raise GlimpseError("Expected `model.pruner` to say what `model.pruner_source` is of, but got none.")
        self.backbone: str | Backbone = backbone
        self._loading: dict[str, Any] = {
            "dtype": dtype, "attn_implementation": attn_implementation, "processor": processor, **source.options()
        }  # fmt: skip
        self.pruner_source = pruner_source
        self.allow_empty = allow_empty
        self.any_backbone = any_backbone
        # In a tuple, or it would be registered a second time next to `vlm.pruner`.
        self._policy = policy if pruner else None
        single = {"after_layer": after_layer, "scorer": scorer, "policy": None if pruner else policy}
        options = {"reducer": reducer, "early_kv": early_kv, "positions": positions}
        self._source = (_pruner_source(single, options, stages, pruner),)
        self.resolution = resolution
        self.budgets: dict[str, float | list[float] | None] = {"retention": retention, "threshold": threshold}
        if resolution is not None and self._source[0] is not None:
            raise GlimpseError("`model.resolution` takes the place of what prunes; drop it, or the pruner.")
        if max_new_tokens < 1:
            raise GlimpseError(f"Expected `model.max_new_tokens` to be at least 1, but got {max_new_tokens}.")
        self.max_new_tokens = max_new_tokens
        self.vlm: PrunedVLM | None = None

    # -- the model ----------------------------------------------------------------------------------------------

    @property
    def trainable(self) -> tuple[str, ...]:
        return ()

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Arguments of ``load_backbone``."""
        return dict(self._loading)

    def over(self, backbone: str | Backbone, **options: Any) -> None:
        """Replace the recipe's backbone, before the model is built.

        Args:
            backbone: name of a backbone, or a loaded one.
            options: arguments of ``load_backbone`` that replace the recipe's; settings in `processor` are added to the
                recipe's.
        """
        processor = {**(self._loading["processor"] or {}), **(options.pop("processor", None) or {})}
        self.backbone, self._loading = backbone, {**self._loading, **options, "processor": processor or None}

    @override
    def configure_model(self) -> None:
        """Load the backbone and build the pruner for it. A second call has no effect."""
        if self.vlm is not None:
            return
        pruner = self.described_pruner()  # its mistakes come before the backbone is loaded
        backbone, later = self.backbone, None
        if isinstance(backbone, str):
            if self.device_mesh is not None and not backbone.startswith(PREFIX):
                later = source_of(backbone)  # each rank loads its share once the sharding is known
            placement: dict[str, Any] = {"device_map": "meta"} if later else {}
            backbone = load_backbone(backbone, **self.backbone_options, **placement)
        (source,) = self._source
        if isinstance(source, Pruner) and not self.allow_empty:
            _check_recipe(source, len(backbone.layers))
        vlm = PrunedVLM(backbone, pruner)
        if pruner is not None:
            _say_where(pruner, len(backbone.layers))
        self.prepare(vlm)
        for name, parameter in vlm.named_parameters():
            parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in self.trainable))
        if self.device_mesh is not None:
            self._shard(vlm, self.device_mesh, later)
        self.vlm = vlm

    def prepare(self, model: PrunedVLM) -> None:
        """Change a built model before its parameters are frozen or sharded. The default does nothing."""

    def _shard(self, vlm: PrunedVLM, mesh: DeviceMesh, source: str | None) -> None:
        if mesh.size(1) > 1:
            raise GlimpseError(
                f"Expected `tensor_parallel_size: 1`, but got {mesh.size(1)}: the engine is sharded over samples only. "
                "Use the overlay recipes/trainer/fsdp2.yaml, which sets it."
            )
        for parameter in vlm.parameters():  # random initial values must be the same on all ranks
            if parameter.requires_grad and not parameter.is_meta:
                parameter.data = parameter.data.to(self.trainer.strategy.root_device)
                distributed.broadcast(parameter.data, 0)
        fill = None if source is None else partial(load_shares, vlm.backbone, source, **self.backbone_options)
        shard(vlm, mesh["data_parallel"], GATHERED.get(self.trainer.precision), fill)

    def _load_pruner(self, source: str) -> Pruner:
        pruner = load_pruner(source, self.any_backbone, **self.pruner_source.options())
        if self._policy is not None:
            if len(pruner.stages) > 1:
                raise GlimpseError(
                    f"Expected a pruner of one stage where `model.policy` replaces its policy, but {source} has "
                    f"{len(pruner.stages)}; leave `model.policy` out."
                )
            pruner.stages[0].policy = self._policy
        return pruner

    @property
    def pruner_folder(self) -> str | None:
        """Folder or hub id of a saved pruner, which then prunes in place of the recipe's parts; else ``None``."""
        (source,) = self._source
        return source if isinstance(source, str) else None

    @property
    def reads_pruner(self) -> bool:
        """Whether the pruner is a saved one, by `model.pruner`."""
        return self.pruner_folder is not None

    def described_pruner(self) -> Pruner | None:
        """The pruner that the recipe describes, with its ``retention`` or ``threshold``; else ``None``.

        It consists of the recipe's own parts, or is the saved one, read anew.

        Raises:
            GlimpseError: where a budget is given without a pruner, or cannot be set.
        """
        (source,) = self._source
        pruner = self._load_pruner(source) if isinstance(source, str) else source
        if pruner is None and any(value is not None for value in self.budgets.values()):
            raise GlimpseError("Expected a pruner that `model.retention` or `model.threshold` could be set for.")
        for stage, policy in ({} if pruner is None else pruner.with_budgets(**self.budgets)).items():
            stage.policy = policy
        return pruner

    @property
    def learns(self) -> bool:
        """Whether the pruner is new and has weights, which have to be trained before use."""
        (pruner,) = self._source
        return isinstance(pruner, Pruner) and self.has_weights(pruner)

    def has_weights(self, pruner: Pruner) -> bool:
        """Whether ``pruner``, built for the backbone, has any parameter."""
        if pruner.facts is None:  # the model is loaded later, when the strategy (sharded or not) is known
            backbone = self.backbone
            if isinstance(backbone, str):
                backbone = load_backbone(backbone, **self.backbone_options, device_map="meta")
            pruner.build(backbone.facts)
        return next(pruner.parameters(), None) is not None

    def check_fit(self) -> None:
        """Raise an error, before the model is loaded, if `fit` would train no parameter.

        Raises:
            GlimpseError: always in this class, which has no objective.
        """
        raise GlimpseError("Expected `model.objective` for `fit`, but got none; evaluate this recipe with `test`.")

    @property
    def prunes(self) -> bool:
        """Whether anything reduces the number of visual tokens: a pruner, or smaller images."""
        return self.resolution is not None or self.model.pruner is not None

    @property
    def model(self) -> PrunedVLM:
        """Backbone and pruner, available after :meth:`configure_model`."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters and the pruner's buffers, without the frozen backbone."""
        state = super().state_dict(*args, **kwargs)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained or name.startswith("vlm.pruner.")}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a result of :meth:`state_dict` that has passed :meth:`check_state`."""
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise a GlimpseError if names or shapes belong to another pruner or backbone."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state_dict)) or [
            name for name, value in state_dict.items() if own[name].shape != value.shape
        ]
        if wrong:
            raise GlimpseError(
                f"This checkpoint holds other trained parameters than this recipe's pruner on this backbone has: "
                f"{len(wrong)} differ, the first is {wrong[0]!r}. Use the recipe and the backbone it was trained with."
            )

    # -- questions ----------------------------------------------------------------------------------------------

    @override
    def collate(self, samples: list[Sample]) -> Batch:
        backbone = self.model.backbone
        batch = backbone.collate(samples)
        places = torch.isin(batch.inputs["input_ids"], torch.tensor(backbone.visual_token_ids))
        batch.visual_tokens = int(places.sum())  # on a GPU, each such count would wait for the device
        if self.model.sharded and batch.answer_ids.shape[1] == 1:
            # No token of such an answer would run through the layers, while other ranks wait.
            batch.answer_ids, batch.answer_mask = one_more(batch.answer_ids), one_more(batch.answer_mask)
        return batch

    def cut(self, batch: Batch) -> Batch:
        """The batch for the model under test, with smaller images if ``resolution`` is set."""
        return batch if self.resolution is None else self.resolution.applied(batch, self.model.backbone)

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answers of the pruned model, indices of the samples that count, masks of their kept tokens, numbers of their
        tokens before pruning (or before the images were shrunk), and whether answers were ``cut_off`` at their longest.
        """
        seen, backbone = self.cut(batch), self.model.backbone
        out = prefill(self.model, seen)
        said = greedy(self.model, out, self.max_new_tokens)
        places = torch.isin(batch.inputs["input_ids"], said.new_tensor(backbone.visual_token_ids)).sum(1).tolist()
        counted = [total for _, total in kept_and_total(out, len(batch.samples))]
        if seen is not batch:
            check_fewer(sum(counted), sum(places), backbone)
        return {
            "answers": backbone.decode(said),
            "counts": [row for row, weight in enumerate(batch.weight.tolist()) if weight],
            "kept": out.items(),
            "total": counted if seen is batch else places,
            "cut_off": [len(row) >= self.max_new_tokens for row in backbone.until_end(said)],
        }

    @override
    def on_predict_epoch_end(self) -> None:
        self.share_skipped()

    def answer(self, samples: list[Sample]) -> list[str]:
        """Answers of the pruned model, outside any trainer."""
        self.configure_model()
        return answers(self.model, self.cut(self.collate(samples)), self.max_new_tokens)[0]


def _pruner_source(
    single: Mapping[str, Any], options: Mapping[str, Any], stages: list[PruneStage] | None, pruner: str | None
) -> Pruner | str | None:
    """The pruner's stages or the saved pruner's folder, from one of three ways to give them.

    Args:
        single: required arguments of a single stage, by name; ``None``: not given.
        options: optional arguments of a single stage.
    """
    given = {name: value for name, value in {**single, **options}.items() if value is not None}
    ways = [", ".join(given)] * bool(given) + ["stages"] * bool(stages) + ["pruner"] * bool(pruner)
    if len(ways) > 1:
        raise GlimpseError(f"Expected one way to say what prunes, but got {' and '.join(ways)}; drop all but one.")
    if stages or pruner:
        return Pruner(stages) if stages else pruner
    if not given:
        return None
    if missing := [name for name, value in single.items() if value is None]:
        raise GlimpseError(
            f"Expected `model.after_layer`, `model.scorer` and `model.policy` together, but {', '.join(missing)} "
            f"is missing (given: {', '.join(given)})."
        )
    return Pruner([PruneStage(**given)])


def _say_where(pruner: Pruner, num_layers: int) -> None:
    """Print where tokens are pruned, with a warning where no layer runs on fewer tokens."""
    layers = [stage.after_layer for stage in pruner.stages]
    after = ", ".join(str(layer) for layer in layers if layer >= 0)
    places = ["before the language model"] if layers[0] < 0 else []
    places += [f"after layer {after} of {num_layers}, counted from 0"] if after else []
    rank_zero_info(f"Visual tokens are pruned {' and '.join(places)}.")
    budgets = [stage.policy.budget for stage in pruner.stages if isinstance(stage.policy, Budgeted)]
    if least := next((budget.min_tokens for budget in budgets if budget.ratio == 0 and budget.min_tokens), 0):
        rank_zero_warn(
            f"A `ratio` of 0 keeps {least} visual token{'s' * (least > 1)} of each {budgets[0].per}, its `min_tokens`. "
            "For none at all, set that to 0, with `--model.allow_empty true`."
        )
    if layers[0] >= num_layers - 1:
        rank_zero_warn(
            f"Layer {layers[0]} is the last one: only the KV cache that decoding reads is pruned, and no layer of a "
            "prefill runs on fewer tokens. An earlier `model.after_layer` saves time there, too."
        )


def _check_recipe(pruner: Pruner, num_layers: int) -> None:
    """Raise an error if a recipe prunes beyond the model, or may leave a sample without visual tokens."""
    for stage in pruner.stages:
        assert isinstance(stage, PruneStage)
        if stage.after_layer >= num_layers:
            raise GlimpseError(
                f"Expected `after_layer` below {num_layers}, the number of the backbone's decoder layers, but got "
                f"{stage.after_layer}; choose an earlier layer. With `--model.allow_empty true` such a stage is let "
                "pass: no layer runs on fewer tokens then, and only the KV cache that decoding reads is pruned."
            )
        if getattr(stage.policy, "may_keep_nothing", False):
            raise GlimpseError(
                f"{type(stage.policy).__name__} may keep no token at all; set its `min_tokens` to 1 or more. With "
                "`--model.allow_empty true` it may: such questions are answered without any visual token."
            )
