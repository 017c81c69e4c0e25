"""Suggestions for misspelt names, and refusals of arguments in one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

import glimpse_lightning as gl
from glimpse_lightning.evaluation.tasks import check_name
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import nearest


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("ratoi", ["count", "ratio", "per"], " Did you mean ratio?"),
        ("vip_lk", ["vip_kl", "vip_kl2", "methods/vtw"], " Did you mean vip_kl or vip_kl2?"),
        ("vtw", ["methods/vtw", "methods/random"], " Did you mean methods/vtw?"),  # 6 of 14 characters are alike
        ("zzz", ["ratio", "count"], ""),
        ("max_pixels", ["do_resize", "image_mean", "image_std", "size"], ""),
    ],
)
def test_nearest(name: str, choices: list[str], said: str) -> None:
    assert nearest(name, choices) == said


def test_tasks_of_suites_are_found_by_half_their_names() -> None:
    with pytest.raises(gl.GlimpseError, match=r"but got 'docvqa'\. Did you mean docvqa_val"):
        check_name("docvqa")


def stage() -> PruneStage:
    return gl.PruneStage(1, gl.scorers.Random(), gl.policies.TopK(4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: gl.load_backbone("glimpse-tiny", max_pixel=100),
            ["`load_backbone`", "'max_pixel'", "mean max_pixels"],
        ),
        (lambda: gl.load_backbone("glimpse-tiny", revison="x"), ["'revison'", "mean revision"]),
        (lambda: gl.scorers.VIP(vision_layer=[1]), ["VIP has no argument 'vision_layer'", "mean vision_layers"]),
        (lambda: gl.scorers.VIP(upstream={"windw": 1}), ["UpstreamOptions", "'windw'", "mean window"]),
        (lambda: gl.policies.MaxMin(ratoi=0.1), ["MaxMin has no argument 'ratoi'", "mean ratio"]),
        (lambda: gl.policies.HiPrune(0.1, object_layr=1), ["HiPrune has no argument", "mean object_layer"]),
        (lambda: gl.policies.DPP(cuont=3), ["DPP has no argument", "mean count"]),
    ],
)
def test_keywords_that_nothing_takes(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(gl.GlimpseError) as caught:
        call()
    assert isinstance(caught.value, TypeError)
    for word in words:
        assert word in str(caught.value)


def test_keywords_of_from_pretrained_go_on_working() -> None:
    more = {"use_safetensors": True, "low_cpu_mem_usage": True, "key_mapping": None, "vision_start_token_id": 7}
    assert gl.load_backbone("glimpse-tiny", **more).model.config.vision_start_token_id == 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gl.Pruner(stage()), "list of stages, as in `Pruner([stage])`, but got an instance of PruneStage"),
        (lambda: gl.Pruner([gl.scorers.Random()]), "to be of class PruneStage, but got Random"),
        (lambda: gl.Sample(question="?", images=Image.new("RGB", (8, 8))), "`images=[image]`"),
        (lambda: gl.Sample(question="?", answers="red"), '`answers=["text"]`'),
    ],
)
def test_one_in_place_of_a_list(call: Callable[[], object], words: str) -> None:
    with pytest.raises(gl.GlimpseError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (gl, "Prunr", "Pruner"), (gl.scorers, "AttentionRnk", "AttentionRank"), (gl.policies, "KeepRato", "KeepRatio"),
        (gl.reducers, "MergeNeares", "MergeNearest"), (gl.metrics, "ANSL", "ANLS"), (gl.objectives, "Masks", "Mask"),
        (gl.rewards, "exactmatch", "exact_match"), (gl.callbacks, "TokenOverlays", "TokenOverlay"),
        (gl.backbones, "load_backbon", "load_backbone"),
    ],
)  # fmt: skip
def test_names_that_a_module_does_not_have(module: object, name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'\. Did you mean {meant}"):
        getattr(module, name)
    assert not hasattr(module, "__wrapped__")
