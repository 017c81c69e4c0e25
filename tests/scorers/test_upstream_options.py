"""VIP's options of imported pruners: as a block, and by the arguments that they were before there was a block."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from factories import FACTS

import glimpse_lightning as gl
from glimpse_lightning.cli import main
from glimpse_lightning.cli.checkpoint_config import checkpoint_config
from glimpse_lightning.cli.identity import differences
from glimpse_lightning.cli.recipe_check import CheckCLI, check
from glimpse_lightning.cli.trainer_runs import prepare_parsing
from glimpse_lightning.pruner.files import init_args
from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import VIP, UpstreamOptions

FLAT = {"window": 3, "deep_supervision": True, "glimpse_layers": [0, 2], "masks": "zero"}
BEFORE = asdict(UpstreamOptions()) | FLAT
"""Options as files of version 0.1 hold them: all of them, among VIP's other arguments."""
SIZES = {"vision_layers": [1], "attention_dim": 16, "condition_dim": 16, "heads": 2}


@pytest.fixture
def silent() -> Iterator[None]:
    """A warning about VIP's arguments is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*of VIP is now.*")
        yield


def recipe(folder: Path, **args: Any) -> Path:
    scorer = {"class_path": "VIP", "init_args": SIZES | args}
    model = {"backbone": "glimpse-tiny", "after_layer": 1, "scorer": scorer, "policy": "Threshold"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {"test": "GlyphVQA"}}), encoding="utf-8")
    return path


def scorer_of(model: Any) -> VIP:
    scorer = model._source[0].stages[0].scorer
    assert isinstance(scorer, VIP)
    return scorer


def options_of(*paths: Path) -> UpstreamOptions:
    (checked,) = check("test", paths)
    return scorer_of(checked.model).upstream


@pytest.mark.usefixtures("silent")
def test_the_block_is_options_or_a_mapping_of_them() -> None:
    expected = UpstreamOptions(**FLAT)
    assert VIP(upstream=expected).upstream == VIP(upstream=FLAT).upstream == expected  # type: ignore[arg-type]
    assert VIP().upstream == UpstreamOptions()


def test_an_argument_of_before_warns_and_replaces_the_blocks() -> None:
    with pytest.warns(DeprecationWarning, match=r"`window` of VIP is now `upstream\.window`") as said:
        found = VIP(upstream=UpstreamOptions(window=2, masks="zero"), window=3).upstream
    assert found == UpstreamOptions(window=3, masks="zero")
    assert [each.filename for each in said] == [__file__]
    with pytest.raises(TypeError, match="widnow"):
        VIP(widnow=3)


@pytest.mark.parametrize("name", [field.name for field in fields(UpstreamOptions)])
def test_every_argument_of_before_warns(name: str) -> None:
    value = (FLAT | {"glimpse_length": 2, "glimpse_norm": "layernorm", "activation": "gelu"})[name]
    with pytest.warns(DeprecationWarning, match=rf"`{name}` of VIP is now `upstream\.{name}`; .* version 0\.4\."):
        assert VIP(**{name: value}).upstream == UpstreamOptions(**{name: value})


def test_an_option_can_be_changed_through_the_scorer() -> None:
    scorer = VIP()
    scorer.masks = "reference"
    assert scorer.upstream == UpstreamOptions(masks="reference")
    with pytest.raises(ValueError, match="Expected `masks`"):
        scorer.masks = "none"


@pytest.mark.usefixtures("silent")
def test_recipes_take_the_block(tmp_path: Path) -> None:
    assert options_of(recipe(tmp_path, upstream=FLAT)) == UpstreamOptions(**FLAT)
    assert options_of(recipe(tmp_path)) == UpstreamOptions()


def test_recipes_take_the_arguments_of_before(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="of VIP is now"):
        assert options_of(recipe(tmp_path, **FLAT)) == UpstreamOptions(**FLAT)


def test_the_command_line_shows_what_python_hides(tmp_path: Path) -> None:
    path = recipe(tmp_path, window=3)
    text = yaml.safe_load(path.read_text()) | {"trainer": {"default_root_dir": str(tmp_path)}}
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore", DeprecationWarning)
        assert main(["test", "--config", str(path)]) == 1, "VIP was not trained"
    assert any("`window` of VIP is now" in str(warning.message) for warning in said)


@pytest.mark.parametrize("flag", ["--model.scorer.upstream.window", "--model.scorer.window"])
def test_flags_take_both_forms(tmp_path: Path, flag: str) -> None:
    path = recipe(tmp_path)
    prepare_parsing()
    cli = CheckCLI(["test", "--config", str(path), flag, "3"], [path])
    assert scorer_of(cli.model).upstream == UpstreamOptions(window=3)


@pytest.mark.parametrize("args", [{"widnow": 3}, {"upstream": {"widnow": 3}}])
def test_an_unknown_option_is_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    with pytest.raises(GlimpseError, match=r"there is no option 'widnow'\. Did you mean window"):
        options_of(recipe(tmp_path, **args))


@pytest.mark.usefixtures("silent")
def test_a_checkpoint_of_before_names_its_scorer(tmp_path: Path) -> None:
    path = recipe(tmp_path, **BEFORE)
    torch.save({"hyper_parameters": yaml.safe_load(path.read_text())}, tmp_path / "last.ckpt")
    with checkpoint_config(["--ckpt_path", str(tmp_path / "last.ckpt")]) as (_, file):
        assert options_of(Path(file)) == UpstreamOptions(**FLAT)


@pytest.mark.usefixtures("silent")
def test_a_saved_pruner_is_read_and_written_as_before(tmp_path: Path) -> None:
    scorer = VIP(**SIZES, upstream=UpstreamOptions(**FLAT))  # type: ignore[arg-type]
    pruner = gl.Pruner([gl.PruneStage(1, scorer, gl.policies.Threshold())])
    pruner.build(FACTS)
    config = json.loads((gl.save_pruner(pruner, tmp_path / "pruner") / "config.json").read_text())
    written = config["stages"][0]["scorer"]["init_args"]
    assert "upstream" not in written and BEFORE.items() <= written.items()
    read = gl.load_pruner(tmp_path / "pruner").stages[0].scorer
    assert isinstance(read, VIP) and read.upstream == scorer.upstream and init_args(read) == written


def test_both_forms_describe_the_same_weights(tmp_path: Path) -> None:
    def resolved(**args: Any) -> dict[str, Any]:
        (checked,) = check("test", [recipe(tmp_path, **args)])
        return dict(renames.current(checked.config))

    with pytest.warns(DeprecationWarning, match="of VIP is now"):
        before = resolved(**FLAT)
    assert differences(before, resolved(upstream=FLAT)) == []
    assert "window: 3 != 4" in str(differences(before, resolved(upstream=FLAT | {"window": 4})))
