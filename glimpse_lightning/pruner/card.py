"""The card that stands on a pruner's page on the Hub."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from glimpse_lightning.pruner.files import SavedPruner, init_args
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.gathering import own_class

EMBEDDED = "glimpse-"
"""Beginning of the names of models that come with the package, which have no page on the Hub."""
USE = """```python
import glimpse_lightning as gl

backbone = gl.load_backbone({backbone})
model = gl.PrunedVLM(backbone, gl.Pruner.from_pretrained({repo!r}))
```
"""


def model_card(
    saved: SavedPruner,
    repo_id: str = "USER/NAME",
    license: str | None = None,
    revision: str | None = None,
    sections: str = "",
    base_model: str | None = None,
) -> ModelCard:
    """A card: what is pruned, of which model, how to load it, and further ``sections``.

    Args:
        saved: the pruner.
        repo_id: ``user/name`` of the page.
        license: the base model's licence as the Hub names it, such as ``apache-2.0``.
        revision: version of the base model that the pruner was trained on; ``None``: not known.
        sections: Markdown that is added at the end, such as a table of results.
        base_model: name of the base model; by default the one that the pruner's files name.
    """
    base = base_model or saved.backbone or (saved.trained_on or {}).get("backbone", "")
    page = base if base and not base.startswith(EMBEDDED) else None
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if page else {}
    data = ModelCardData(
        base_model=page,
        license=license,
        library_name="glimpse-lightning",
        pipeline_tag="image-text-to-text",
        tags=["visual-token-pruning"],
        **relation,
    )
    where = repr(base) + (f", revision={revision!r}" if revision else "")
    version = f" (revision `{revision}`)" if revision else ""
    of = f"`{base}`{version}" if base else "a model that its files do not name"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        f"A visual-token pruner for {of}: it drops most of an image's tokens on their way through the language model, "
        "whose own weights stay as they are.",
        "\n".join(_stage(stage, saved) for stage in saved.stages),
        "## Use",
        USE.format(backbone=where if base else "...", repo=repo_id).rstrip(),
        _fingerprint(saved),
        f"Licence of the base model: {license or 'not stated here; see its own page'}.",
        sections,
    ]
    return ModelCard("\n\n".join(filter(None, parts)) + "\n", ignore_metadata_errors=True)


def _stage(stage: PruneStage, saved: SavedPruner) -> str:
    """A line about one stage."""
    layers = saved.facts.num_layers
    after = f"After decoder layer {stage.after_layer} of {layers} (counted from 0)"
    where = after if stage.after_layer >= 0 else "Before the language model"
    weights = sum(weight.numel() for name, weight in stage.scorer.state_dict().items())
    size = f" ({weights:,} weights)" if weights else ""
    parts = f"`{_call(stage.scorer)}`{size}, then `{_call(stage.policy)}`, `{_call(stage.reducer)}`"
    return f"* {where}: {parts}; `early_kv: {stage.early_kv}`, `positions: {stage.positions}`"


def _call(part: object) -> str:
    """A part as it is written in Python, with the arguments that differ from its defaults."""
    defaults = {each.name: each.default for each in inspect.signature(own_class(part)).parameters.values()}
    for block in [value for name in defaults if is_dataclass(value := getattr(part, name, None))]:
        defaults |= {field.name: field.default for field in fields(block)}
    given = {name: value for name, value in init_args(part).items() if value != _listed(defaults.get(name))}
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _listed(value: Any) -> Any:
    """A default as a saved pruner holds it."""
    return list(value) if isinstance(value, tuple) else value


def _fingerprint(saved: SavedPruner) -> str:
    if saved.trained_on is None:
        return "No fingerprint of a model is saved along: it attaches to any model of its shape."
    return (
        f"`config.json` holds a fingerprint of the model's weights ({len(saved.trained_on['weights'])} tensors are "
        "sampled). A model of the same shape and other weights is refused, unless `any_backbone=True` allows it."
    )
