"""Writing a pruner as the reference (HVision-NKU/GlimpsePrune) does: ``config.json`` and ``new_modules_gp.pt``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.pruner.files import UPSTREAM_WEIGHTS
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.pruner.upstream import DEFAULTS, SHAPES, window_side
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.runtime.dtypes import dtype_named
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.vip import VIP

Config = dict[str, Any]
MODEL_TYPES = {"qwen2_5_vl": "qwen2_5_vl_gp", "llava": "llava_llama_gp"}


def upstream_files(pruner: Pruner, base: Config | None = None) -> tuple[Config, dict[str, Any]]:
    """Contents of ``config.json`` and ``new_modules_gp.pt``.

    Fields that a pruner was read with, and whose meaning has not changed, are written unchanged. Weights are written in
    the data type in which they were read (bfloat16, as in the releases, where they were not read) if that loses
    nothing, and else in their own.

    Args:
        pruner: the built pruner.
        base: fields of the base model's ``config.json``, which the reference's loader needs in addition to the
            pruner's; by default those that the pruner was read with.

    Raises:
        GlimpseError: where the reference's format cannot describe the pruner.
    """
    stage, scorer, policy = _expressible(pruner)
    assert pruner.facts is not None
    config = {**(pruner.origin or {}), **(base or {})}
    for name in DEFAULTS:  # a base folder may be another pruner's
        config.pop(name, None)
        if pruner.origin and name in pruner.origin:
            config[name] = pruner.origin[name]
    fields = _fields(stage, scorer, policy, pruner.facts)
    llava = fields["model_type"] == MODEL_TYPES["llava"]
    old = DEFAULTS | SHAPES[fields["model_type"]] | config.get("text_config", {}) | config
    if pruner.origin and min(old["reduce_layer"], pruner.facts.num_layers - 1) == fields["reduce_layer"]:
        fields["reduce_layer"] = old["reduce_layer"]
    fields["ori_attn_supervision"] = bool(pruner.origin and old["ori_attn_supervision"])
    if llava:
        fields = {name: value for name, value in fields.items() if name not in ("attn_fuse_global", "le_norm_type")}
    else:
        fields["vision_config"] = _vision_config(config, scorer, pruner.facts, silent=pruner.origin is None)
    _check_shape(config, fields)
    for name, value in fields.items():
        if name in ("anchor_positions", "min_remain_num") and not value and old[name] is None:
            continue  # both values mean none
        silent = name not in config and pruner.origin is None  # class defaults differ from the releases': write all
        if silent or _plain(old.get(name)) != _plain(value):
            config[name] = value
    return config, _weights(scorer, dtype_named(pruner.origin_dtype or "bfloat16"))


def write_upstream(pruner: Pruner, folder: Path, base: Config | None = None) -> None:
    """Write both files into ``folder``; see :func:`upstream_files`."""
    config, weights = upstream_files(pruner, base)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    torch.save(weights, folder / UPSTREAM_WEIGHTS)


def _refuse(*differences: tuple[str, object]) -> GlimpseError:
    """The error for a pruner with properties that the format lacks: what it can say, and what was got, by property."""
    expected, got = zip(*differences, strict=True)
    return GlimpseError(
        f"Expected {' and '.join(expected)}, which is all that the reference's format can say, but got "
        f"{' and '.join(map(str, got))}. Export this pruner with `--format glimpse`."
    )


def _expressible(pruner: Pruner) -> tuple[PruneStage, VIP, Threshold]:
    """The only stage, its scorer and policy; raises for all properties that the reference's format lacks."""
    if pruner.facts is None:
        raise GlimpseError("Expected a pruner that was built for a model, but got one that has no weights yet.")
    if len(pruner.stages) != 1:
        raise _refuse(("a pruner of one stage", f"{len(pruner.stages)} stages"))
    (stage,) = pruner.stages
    scorer, policy = stage.scorer, stage.policy
    differences: list[tuple[str, object]] = [
        (f"the {name} {wanted.__name__}", type(part).__name__)
        for part, name, wanted in (
            (scorer, "scorer", VIP), (policy, "policy", Threshold), (stage.reducer, "reducer", Drop)
        )
        if type(part) is not wanted
    ]  # fmt: skip
    if isinstance(scorer, VIP):
        differences += _differences(scorer, pruner.facts.model_type)
    if isinstance(policy, Threshold):
        per = "item" if isinstance(scorer, VIP) and scorer.masks != "predicted" else "sample"
        differences += [("scale='sigmoid'", f"scale={policy.scale!r}")] if policy.scale != "sigmoid" else []
        differences += [(f"per={per!r}", f"per={policy.per!r}")] if policy.per != per else []
    for name, wanted in (("early_kv", "prune"), ("positions", "keep")):
        if getattr(stage, name) != wanted:
            differences.append((f"{name}={wanted!r}", f"{name}={getattr(stage, name)!r}"))
    if pruner.facts.model_type not in MODEL_TYPES:
        differences.append((f"a pruner of {' or '.join(MODEL_TYPES)}", repr(pruner.facts.model_type)))
    if differences:
        raise _refuse(*differences)
    assert isinstance(scorer, VIP) and isinstance(policy, Threshold)
    return stage, scorer, policy


def _differences(scorer: VIP, model_type: str) -> list[tuple[str, object]]:
    """Options of a scorer that have no field in the reference's ``config.json``."""
    found: list[tuple[str, object]] = [("standardise=False", "standardise=True")] if scorer.standardise else []
    queries = ("glimpse",) if model_type == "llava" else ("glimpse", "last")
    if len(scorer.queries) != 1 or scorer.queries[0] not in queries:
        found.append((f"query={' or '.join(map(repr, queries))}", f"query={scorer.query!r}"))
    lacks = [name for name in ("vision_condition", "rotary", "fusion") if not getattr(scorer, name)]
    if lacks:
        found.append(("a whole VIP (vision_condition, rotary, fusion)", f"one without {', '.join(lacks)}"))
    if model_type == "llava" and scorer.window is not None:
        found.append(("window=None for LLaVA", f"window={scorer.window}"))
    if model_type == "llava" and scorer.glimpse_norm != "rmsnorm":
        found.append(("glimpse_norm='rmsnorm' for LLaVA", f"glimpse_norm={scorer.glimpse_norm!r}"))
    return found


def _fields(stage: PruneStage, scorer: VIP, policy: Threshold, facts: ModelFacts) -> Config:
    """The pruner's settings under the reference's names."""
    layers = [] if scorer.glimpse_layers is None else scorer.glimpse_layers
    if scorer.glimpse is not None:
        layers = scorer.glimpse.layers
    elif scorer.glimpse_length:
        layers = []  # no glimpse: either count is 0
    first = 1 if facts.model_type == "llava" else 0  # LLaVA's index CLIP's hidden_states, whose 0 is the embedding
    return {
        "model_type": MODEL_TYPES[facts.model_type],
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_kv_heads,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "rms_norm_eps": facts.rms_norm_eps,
        "selected_layers": list(scorer.attended),
        "use_attention_logits": scorer.attention == "logits",
        "attn_fuse_type": "AttnFuserV1",
        "attn_fuse_size": scorer.attention_dim,
        "attn_fuse_global": scorer.window is None,
        "attn_fuse_num_heads": scorer.heads,
        "attn_fuse_hidden_act": scorer.activation,
        "selected_visual_layers": [layer + first if layer >= 0 else layer for layer in scorer.conditions],
        "visual_cond_size": scorer.condition_dim,
        "deep_supervision": scorer.deep_supervision,
        "le_layers": list(layers),
        "le_length": scorer.glimpse_length,
        "le_dropout_prob": scorer.dropout,
        "le_norm_type": scorer.glimpse_norm,
        "reduce_threshold": policy.threshold,
        "reduce_layer": min(stage.after_layer, facts.num_layers - 1),
        "use_ref_masks": scorer.masks == "reference",
        "use_zero_masks": scorer.masks == "zero",
        "anchor_positions": list(policy.anchors),
        "min_remain_num": policy.min_tokens,
        "max_remain_ratio": policy.max_ratio,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_shape(config: Config, fields: Config) -> None:
    """Raise where the base model's fields are those of a model of another shape."""
    flat = config.get("text_config", {}) | config
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if flat.get(name, fields[name]) != fields[name]:
            raise GlimpseError(
                f"Expected the base model's configuration to be of the model that the pruner was built for ({name} = "
                f"{fields[name]}), but got {flat[name]}. Name the folder of the right base model."
            )


def _vision_config(config: Config, scorer: VIP, facts: ModelFacts, silent: bool) -> Config:
    """``vision_config`` of a Qwen2.5-VL, with the fields on which the pruner depends filled in.

    Args:
        silent: whether no configuration has described the vision tower yet, so that all fields are written; otherwise
            missing fields have their defaults.
    """
    vision = dict(config.get("vision_config", {}))
    if silent:
        vision = {"depth": facts.vision_layers, "hidden_size": facts.vision_hidden_size} | vision
    if scorer.window is not None:
        if silent and "window_size" not in vision:
            vision["window_size"] = scorer.window * 28
        if window_side({"vision_config": vision}) != scorer.window:
            side = window_side({"vision_config": vision})
            raise _refuse((f"windows of {side} tokens, as the vision tower has", scorer.window))
    return vision


def _weights(scorer: VIP, dtype: torch.dtype) -> dict[str, Any]:
    state = {name: value.detach().cpu() for name, value in scorer.state_dict().items()}
    if all(torch.equal(value.to(dtype).to(value.dtype), value) for value in state.values()):
        state = {name: value.to(dtype) for name, value in state.items()}

    def part(prefix: str) -> dict[str, Tensor]:
        found = {name: value.clone() for name, value in state.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in found.items()}

    if scorer.glimpse is None:
        return {"attn_fuser": part("network.")}
    return {
        "attn_fuser": part("network."),
        "learnable_embeddings": state["glimpse.embeddings"].clone(),
        "le_proj": part("glimpse.proj."),
        "le_norm": part("glimpse.norm."),
    }
