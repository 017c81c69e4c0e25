"""``bench`` through the real command line, on glimpse-tiny; and what its figures are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import FAMILIES
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import glimpse_lightning as gl
from glimpse_lightning.bench.command import _record, arguments
from glimpse_lightning.bench.figures import attainable, figure
from glimpse_lightning.bench.inputs import make_inputs
from glimpse_lightning.bench.report import SCALES, head
from glimpse_lightning.bench.settings import Settings, read
from glimpse_lightning.bench.sweep import case_of
from glimpse_lightning.bench.theory import Case
from glimpse_lightning.cli import main
from glimpse_lightning.cli.packaged_recipes import recipes
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.latency.clock import Clock
from glimpse_lightning.latency.measure import Variant, decoder_seconds, sizes
from glimpse_lightning.latency.memory import peak_bytes
from glimpse_lightning.runtime.errors import GlimpseError

SMALL = {
    "model": "glimpse-tiny", "device": "cpu", "scorer": "AttentionRank", "visual_tokens": [16, 400], "text_tokens": 12,
    "after_layers": [2], "retention": [0.5], "new_tokens": 3, "warmup": 0, "repetitions": 2, "max_prompt_tokens": 100,
    "samples": 2, "trace": True,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    assert main(["bench", "--config", str(write(folder)), "--output", str(folder / "bench.json")]) == 0
    assert "measured / theory" in (folder / "bench.md").read_text()
    assert (folder / "bench.png").is_file()
    return json.loads((folder / "bench.json").read_text())


def test_record_says_what_was_measured(record: dict[str, Any]) -> None:
    assert record["command"].startswith("python -m glimpse_lightning bench --config")
    assert record["model"]["weights"] == "trained"
    assert {"device", "versions", "commit", "date", "threads"} <= set(record["machine"])
    small, large = record["groups"]
    assert [row["name"] for row in small["variants"]] == ["hf", "unpruned", "K=2 r=0.5"]
    assert (small["visual_tokens"], small["text_tokens"]) == (16, 12)
    assert "max_prompt_tokens" in large["left_out"]


def test_counted_flops_and_kv_bytes_are_the_theoretical_ones(record: dict[str, Any]) -> None:
    for row in record["groups"][0]["variants"]:
        for name in ("prefill_flops", "kv_bytes", "kv_length"):
            # The row of attention logits that a probe captures inside a layer is not the model's.
            assert row["figures"][name]["to_theory"] == pytest.approx(1, abs=1e-3), (row["name"], name)
        assert set(row["figures"]) == set(SCALES)
    pruned = record["groups"][0]["variants"][-1]
    assert pruned["kept"] == [8]
    assert pruned["figures"]["kv_length"]["median"] == 8 + 12


def test_cache_that_early_layers_keep_is_counted() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    stages = [
        gl.PruneStage(layer, gl.scorers.FixedRatio(), gl.policies.KeepRatio(ratio), early_kv="keep")
        for layer, ratio in ((1, 0.5), (3, 0.25))
    ]
    variant = Variant("kept", backbone, gl.PrunedVLM(backbone, gl.Pruner(stages)))
    found = sizes(variant, make_inputs(backbone, 2, 16, 12), [""] * 2, new_tokens=3)
    assert found.stages == [StageTokens(1, 8, "keep"), StageTokens(3, 4, "keep")]
    case = case_of(variant, 2, 16, 12, found.stages)
    assert case.cached_layers == [28, 28, 20, 20, 16, 16, 16, 16]
    assert (found.kv_length, found.kv_bytes) == (case.cached, case.kv_bytes())


def test_a_batch_is_as_long_as_its_longest_prompt() -> None:
    """Samples may keep different numbers of tokens; layers and caches then run at the largest."""

    class OfTheSample(gl.scorers.Scorer):
        def forward(self, tokens: gl.VisualTokens) -> torch.Tensor:
            return torch.where(torch.arange(len(tokens)) % 16 < 3 + 4 * tokens.sample, 1.0, -1.0)

    backbone = gl.load_backbone("glimpse-tiny")
    pruner = gl.Pruner([gl.PruneStage(2, OfTheSample(), gl.policies.Threshold())])
    variant = Variant("ragged", backbone, gl.PrunedVLM(backbone, pruner))
    found = sizes(variant, make_inputs(backbone, 2, 16, 12), [""] * 2, new_tokens=3)
    assert found.stages == [StageTokens(2, 7, "prune")]
    case = case_of(variant, 2, 16, 12, found.stages)
    assert (found.kv_length, found.kv_bytes) == (case.cached, case.kv_bytes())


def test_phases_add_up_and_unpruned_equals_hugging_face(record: dict[str, Any]) -> None:
    hf, unpruned, pruned = record["groups"][0]["variants"]
    assert unpruned["logits_difference_to_hf"] < 1e-4 < pruned["logits_difference_to_hf"]
    for row in (hf, unpruned):
        assert row["figures"]["scoring"]["median"] == row["figures"]["prefill_after_k"]["median"] == 0
    for phase in ("vision", "preparation", "prefill_to_k", "scoring", "prefill_after_k", "tpot"):
        assert pruned["figures"][phase]["median"] > 0
    assert pruned["figures"]["ttft"]["p10"] > pruned["figures"]["prefill"]["p10"]
    assert "vs_hf" in pruned["figures"]["prefill"] and "vs_hf" not in hf["figures"]["prefill"]


def test_trace_shows_where_the_time_goes(record: dict[str, Any]) -> None:
    for row in record["groups"][0]["variants"]:
        found = row["trace"]
        assert sum(one["share"] for one in found["operators"]) == pytest.approx(1)
        assert sum(one["calls"] for one in found["operators"]) == found["calls"] > 100
        assert any(one["name"].startswith("aten::") for one in found["operators"])


def test_unpruned_prefill_calls_hardly_more_operators(record: dict[str, Any]) -> None:
    """Our loop over the layers adds a fixed number of small ones, and no copies of whole states."""
    hf, unpruned, _ = (row["trace"]["calls"] for row in record["groups"][0]["variants"])
    assert unpruned < 1.15 * hf


@pytest.mark.parametrize("name", ["glyph_vqa", "questions.csv"])
def test_data_protocol(tmp_path: Path, name: str) -> None:
    if name != "glyph_vqa":
        Image.new("RGB", (224, 224)).save(tmp_path / "image.png")
        name = str(tmp_path / name)
        Path(name).write_text("question,image\n0?,image.png\n1?,image.png\n")  # answers may be missing
    config = str(write(tmp_path, scorer="VIP", scorer_args={"attention_dim": 32, "condition_dim": 32}))
    assert main(["bench", "--config", config, "--data", name, "--output", str(tmp_path / "d.json")]) == 0
    (group,) = json.loads((tmp_path / "d.json").read_text())["groups"]
    hf, _, pruned = (row["figures"] for row in group["variants"])
    assert group["samples"] == hf["prefill"]["n"] == 2
    report = (tmp_path / "d.md").read_text()
    assert "| 2 questions, one round each, after 0 of warm-up, 3 new tokens each |" in report
    tokens = 256 if name == "glyph_vqa" else 64
    assert (group["visual_tokens"], [row["kept"] for row in group["variants"]]) == (tokens, [[], [], [tokens / 2]])
    assert f"one at a time, {tokens} visual tokens on average" in report
    assert f"| K=2 r=0.5 | {tokens // 2} (50.0%) |" in report
    assert pruned["kv_length"]["median"] < hf["kv_length"]["median"]
    assert pruned["prefill_flops"]["to_theory"] == pytest.approx(1, abs=1e-3)  # the row of logits, as above
    assert pruned["peak_bytes"]["median"] > 0


def test_images_that_cannot_be_read_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "image.png")
    (tmp_path / "empty.png").touch()
    rows = ["empty.png", "image.png", "empty.png", "image.png", "image.png"]
    (tmp_path / "q.csv").write_text("question,image\n" + "".join(f"{n}?,{name}\n" for n, name in enumerate(rows)))
    run = ["bench", "--config", str(write(tmp_path)), "--output", str(tmp_path / "d.json"), "--data"]
    assert main([*run, str(tmp_path / "q.csv")]) == 0
    (group,) = json.loads((tmp_path / "d.json").read_text())["groups"]
    assert group["samples"] == 2 and len(group["skipped"]) == 2
    assert capsys.readouterr().err.count("left out: ") == 2
    (tmp_path / "q.csv").write_text("question,image\n0?,empty.png\n")
    assert main([*run, str(tmp_path / "q.csv")]) == 1
    assert "none of the questions can be asked" in capsys.readouterr().err
    assert main([*run, str(tmp_path)]) == 1
    assert "is a folder. Name the file in it" in capsys.readouterr().err


def test_random_weights_are_refused_with_questions_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("glimpse_lightning.bench.command.backbone_of", lambda _: pytest.fail("built"))
    config = str(write(tmp_path))
    assert main(["bench", "--config", config, "--backbone", "random:qwen2.5-vl-7b", "--data", "glyph_vqa"]) == 1
    error = capsys.readouterr().err
    assert "'random:qwen2.5-vl-7b'" in error and "`--backbone`" in error and "leave `--data` out" in error


@pytest.mark.parametrize(
    "command", ["test --config eval/quick", "predict --config methods/fastv --image . --question q"]
)
def test_random_weights_are_refused_by_commands_that_ask(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--backbone", "random:qwen2.5-vl-7b"]) == 1
    assert "'random:qwen2.5-vl-7b'" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random:mid-llava", "random weights"),
        ("glimpse-tiny", "trained weights"),
        ("models/mine", "weights of models/mine"),
    ],
)
def test_weights_go_by_what_is_known_of_them(name: str, said: str, tmp_path: Path) -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    record = {**_record(Settings(name), backbone, []), "groups": []}
    assert f"{name} ({said}, " in "\n".join(head(record))


def test_the_profiler_of_torch_says_nothing(tmp_path: Path) -> None:
    """In a process of its own: the profiler reads its level once."""
    run = "from glimpse_lightning.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    words = ["bench", "--config", str(write(tmp_path, visual_tokens=[16])), "--output", str(tmp_path / "o.json")]
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "profiler_start" not in done.stderr and "Loading weights" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retension": [0.5]}, ["'retension'", "Did you mean retention"]),
        ({"retention": [1.5]}, ["`retention`", "[1.5]"]),
        ({"scorer": "AttentonRank"}, ["'AttentonRank'", "Did you mean AttentionRank"]),
        ({"scorer_args": {"layers": 3}}, ["`scorer_args`", "'layers'", "`--scorer_args '{}'`"]),
        ({"after_layers": [99]}, ["`after_layers`", "99", "`--after_layers '[2]'`"]),
        ({"clock": "process"}, ["`threads`", "process"]),
        ({"new_tokens": 1}, ["`new_tokens`", "at least 2"]),
    ],
)
def test_mistakes_are_named(
    changes: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--config", str(write(tmp_path, **changes)), "--output", str(tmp_path / "o.json")]) == 1
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("name", sorted(name for name in recipes() if name.startswith("bench/")))
def test_ready_made_benchmarks_can_be_read(name: str) -> None:
    settings = read(recipes()[name])
    assert settings.repetitions >= 20
    getattr(gl.scorers, settings.scorer)(**settings.scorer_args)


@pytest.mark.parametrize("preset", ["mid-qwen2.5-vl", "mid-llava"])
def test_inputs_have_the_wanted_tokens_and_no_padding(preset: str) -> None:
    backbone = gl.load_backbone(f"random:{preset}")
    wanted = 576
    with torch.no_grad():
        prompt = backbone.embed(make_inputs(backbone, 2, wanted, 20))
    assert prompt.visual.sum(1).tolist() == [wanted] * 2
    assert prompt.mask.all()
    assert prompt.mask.shape[1] == wanted + 20


def test_theory_of_the_articles_figures() -> None:
    """Qwen2.5-VL-7B, K = 18 (19 of 28 layers), 5,000 visual tokens, 2.6 % kept: 69.0 % of the FLOPs."""
    facts = gl.ModelFacts(28, 28, 4, 128, 3584, 18944, 1e-6, 32, 1280)
    pruned, full = (Case(facts, 1, 5000, 74, stages, 152064, 2) for stages in ([StageTokens(18, 130)], []))
    assert sum(pruned.prefill_flops()) / sum(full.prefill_flops()) == pytest.approx(0.690, abs=1e-3)
    assert full.kv_bytes() == pytest.approx(277 * 2**20, rel=0.01)
    assert pruned.kv_bytes() == pytest.approx(11 * 2**20, rel=0.02)
    kept = Case(facts, 1, 5000, 74, [StageTokens(18, 130, "keep")], 152064, 2)
    assert kept.kv_bytes() == pytest.approx((19 * full.kv_bytes() + 9 * pruned.kv_bytes()) / 28)
    assert kept.prefill_flops() == pruned.prefill_flops()
    assert full.peak_bytes() > kept.peak_bytes() >= pruned.peak_bytes()
    assert pruned.decode_bytes(15e9, 0) / full.decode_bytes(15e9, 0) > 0.98  # bound by the weights at batch 1


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def run() -> None:
        first = torch.empty(2**20, dtype=torch.uint8)
        del first
        second = torch.empty(3 * 2**20, dtype=torch.uint8)
        third = torch.empty(2**20, dtype=torch.uint8)
        del second, third

    assert peak_bytes(run, torch.device("cpu")) == pytest.approx(4 * 2**20, rel=0.01)


@pytest.mark.parametrize("stages", [[], [StageTokens(0, 40)], [StageTokens(1, 40)], [StageTokens(1, 40, "keep")]])
def test_peak_of_prefill_is_what_its_layers_hold(stages: list[StageTokens]) -> None:
    """Norms and MLPs of a real decoder over tensors as long as prefill's, next to a cache that grows."""
    facts = gl.ModelFacts(3, 4, 2, 16, 64, 192, 1e-6, 4, 16)
    case = Case(facts, 2, 300, 20, stages, 100, 4)
    norm, mlp = LlamaRMSNorm(64), LlamaMLP(LlamaConfig(hidden_size=64, intermediate_size=192))

    def run() -> None:
        states, cache = torch.zeros(2, 320, 64), []
        for layer in range(facts.num_layers):
            cache.append(torch.zeros(2, 2, 2, states.shape[1], 16))  # keys and values of two heads
            states = states + mlp(norm(states))
            for stage in stages:
                if stage.after_layer == layer:
                    states = states[:, :60].clone()
                    cache = cache if stage.early_kv == "keep" else [each[..., :60, :].clone() for each in cache]

    with torch.no_grad():
        assert peak_bytes(run, torch.device("cpu")) == pytest.approx(case.peak_bytes(), rel=1e-3)


def test_attainable_is_the_decoders_own_pace_at_each_length(record: dict[str, Any]) -> None:
    facts = gl.ModelFacts(4, 2, 2, 8, 16, 32, 1e-6, 4, 16)
    case = Case(facts, 1, 50, 10, [StageTokens(0, 20)], 100, 4, glimpse=1, glimpse_layer=0)
    found = attainable(case, {30: (1.0, 0.1)}, hf=4.1, scoring=0.5)
    assert found == pytest.approx({"prefill": 1.0 + 3 * 0.25 + 0.1 + 0.5, "prefill_after_k": 3 * 0.25 + 0.1})
    for row in record["groups"][0]["variants"]:
        figures = row["figures"]
        assert ("attainable" in figures["prefill"]) == (row["name"] == "K=2 r=0.5")
    assert figures["prefill"]["to_attainable"] == figures["prefill"]["median"] / figures["prefill"]["attainable"]
    assert figures["prefill_after_k"]["attainable"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_of_all_families_run_alone(family: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    assert min(decoder_seconds(backbone, 2, 5, Clock(torch.device("cpu")))) > 0


def test_figures_pair_rounds() -> None:
    noise = [1.0, 5.0, 1.0, 9.0, 2.0]
    found = figure([2 * one for one in noise], theory=4.0, hf=noise)
    assert found["vs_hf"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert found["to_theory"] == 1.0


def test_the_model_goes_by_the_name_that_other_recipes_give_it(tmp_path: Path) -> None:
    recipe = tmp_path / "bench.yaml"
    recipe.write_text("backbone: random:mid-qwen2.5-vl\n")
    assert read(recipe).model == "random:mid-qwen2.5-vl"
    recipe.write_text("backbone: a\nmodel: b\n")
    with pytest.raises(GlimpseError, match="there is no key 'backbone'"):
        read(recipe)
    for flag in ("--model", "--backbone"):
        assert arguments().parse_args(["--config", "x", flag, "glimpse-tiny"]).model == "glimpse-tiny"


def test_another_scorer_has_its_own_arguments() -> None:
    settings = Settings("glimpse-tiny", scorer="VIP", scorer_args={"heads": 1})
    assert settings.with_flags({"scorer": "AttentionRank"}).scorer_args == {}
    assert settings.with_flags({"scorer": "VIP"}).scorer_args == {"heads": 1}
    assert settings.with_flags({"scorer": "AttentionRank", "scorer_args": {"layer": 1}}).scorer_args == {"layer": 1}


@pytest.mark.parametrize("flag", [["--repetitions", "2"], ["--batch_sizes", "[1]"], ["--trace"]])
def test_flags_about_random_prompts_are_refused_with_questions(
    flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--config", str(write(tmp_path)), "--data", "glyph_vqa", *flag]) == 1
    error = capsys.readouterr().err
    assert f"no {flag[0]} with" in error and "`--samples`" in error


def test_a_misspelt_flag_leads_to_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--config", str(write(tmp_path)), "--after_layer", "[1]"]) == 1
    assert "There is no option --after_layer. Did you mean --after_layers?" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "remedy"), [("--samples", "with `--data`"), ("--answer_tokens", "with `training`")])
def test_flags_that_nothing_would_read_are_refused(
    flag: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--config", str(write(tmp_path)), flag, "2"]) == 1
    assert f"Expected `{flag}` {remedy}" in capsys.readouterr().err


def test_whole_methods_are_measured_by_their_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all their stages; one without a budget once, the others at every share."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipes()["methods/fastv"].read_text().replace("after_layer: 1", "after_layer: 4"))
    named = ["methods/visionzip", "pyramid_drop", str(mine)]
    config = write(tmp_path, visual_tokens=[36], retention=[0.5, 0.25], trace=False)
    flags = [word for name in named for word in ("--recipe", name)]
    assert main(["bench", "--config", str(config), *flags, "--output", str(tmp_path / "o.json")]) == 0
    rows = json.loads((tmp_path / "o.json").read_text())["groups"][0]["variants"]
    assert {row["name"]: (row["kept"], row["after_layer"]) for row in rows[2:]} == {
        "visionzip r=0.5": ([18], -1),
        "visionzip r=0.25": ([9], -1),
        "pyramid_drop": ([18, 9, 4], None),
        "mine r=0.5": ([18], 4),
        "mine r=0.25": ([9], 4),
    }
    for row in rows[2:]:
        assert row["figures"]["kv_bytes"]["to_theory"] == pytest.approx(1)
    assert "| visionzip r=0.25 | 9 (25.0%) |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipes": ["methods/full"]}, ["methods/full drops no tokens"]),
        ({"recipes": ["methods/resolution_cut"]}, ["methods/resolution_cut drops no tokens"]),
        ({"recipes": ["methods/visionzap"]}, ["visionzap", "visionzip"]),
        ({"recipes": "methods/fastv"}, ["`recipes`", "a list of recipes"]),
        ({"recipes": ["methods/fastv"], "training": ["kl"]}, ["`recipes`", "left out with `training`"]),
    ],
)
def test_recipes_that_cannot_be_measured_are_named(
    changes: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_mistakes_are_named(changes, words, tmp_path, capsys)
