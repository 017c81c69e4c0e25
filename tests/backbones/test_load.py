"""Loading: presets of published sizes, quantization, and messages that say what to do."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

import glimpse_lightning as gl
from glimpse_lightning.backbones import load, processing, support
from glimpse_lightning.backbones.embedded import source_of
from glimpse_lightning.backbones.presets import PRESETS

# Parameters of the published checkpoints (tied ones once).
PUBLISHED = {
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen2.5-vl-72b": 73_410_777_344,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.5-13b": 13_350_839_296,
    "llava-next-7b": 7_566_747_648,
    "llava-onevision-7b": 8_030_348_832,
    "internvl3-8b": 7_944_373_760,
    "smolvlm-256m": 256_484_928,
    "smolvlm-500m": 507_482_304,
    "smolvlm-2b": 2_246_272_880,
}


def test_every_preset_is_checked():
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_preset_has_the_published_size(preset):
    backbone = gl.load_backbone(f"random:{preset}", dtype="bfloat16", device_map="meta")
    assert sum(p.numel() for p in backbone.model.parameters()) == pytest.approx(PUBLISHED[preset], rel=0.02)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.model.device.type == "meta"
    assert backbone.facts.num_layers == len(backbone.layers)
    assert backbone.facts.vision_layers > 0


def test_unknown_preset_lists_presets():
    with pytest.raises(gl.GlimpseError, match=r"llava-1\.5-7b, .*qwen2\.5-vl-7b.*'random:gpt-9'"):
        gl.load_backbone("random:gpt-9")


def test_random_weights_take_no_quantization():
    with pytest.raises(gl.GlimpseError, match="quantization"):
        gl.load_backbone("random:smolvlm-256m", quantization="bnb-4bit")


@pytest.mark.parametrize(("quantization", "attribute"), [("bnb-4bit", "load_in_4bit"), ("bnb-8bit", "load_in_8bit")])
def test_quantization_reaches_from_pretrained(monkeypatch, quantization, attribute):
    seen = {}

    def from_pretrained(source, **kwargs):
        seen.update(kwargs)
        return FAMILIES["qwen2_5_vl"]()

    monkeypatch.setattr(load, "find_spec", lambda _: object())
    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    monkeypatch.setattr(load, "load_processor", lambda _: None)
    gl.load_backbone("some/model", dtype="bfloat16", quantization=quantization)
    assert getattr(seen["quantization_config"], attribute)


def test_quantization_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda _: None)
    with pytest.raises(gl.GlimpseError, match="pip install bitsandbytes"):
        gl.load_backbone("some/model", quantization="bnb-4bit")


def without(*packages):
    return lambda name: None if name in packages else object()


def test_quantization_without_accelerate(monkeypatch):
    monkeypatch.setattr(load, "find_spec", without("accelerate"))
    with pytest.raises(gl.GlimpseError, match=r"`quantization='bnb-8bit'` needs accelerate.*pip install accelerate"):
        gl.load_backbone("some/model", quantization="bnb-8bit")


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_spreading_over_devices_without_accelerate(monkeypatch, device_map):
    monkeypatch.setattr(load, "find_spec", without("accelerate"))
    with pytest.raises(gl.GlimpseError, match=r"`device_map=.*needs accelerate.*device_map='cuda'"):
        gl.load_backbone("glimpse-tiny", device_map=device_map)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"])
def test_a_single_device_needs_no_accelerate(monkeypatch, device):
    monkeypatch.setattr(load, "find_spec", without("accelerate"))
    backbone = gl.load_backbone("glimpse-tiny", device_map=device)
    assert backbone.model.device == torch.device(device)


def test_device_map_reaches_from_pretrained(monkeypatch):
    seen = {}

    def from_pretrained(source, **kwargs):
        seen.update(kwargs)
        return FAMILIES["qwen2_5_vl"]()

    monkeypatch.setattr(load, "find_spec", without())
    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    monkeypatch.setattr(load, "load_processor", lambda _: None)
    gl.load_backbone("some/model", device_map="auto", max_memory={0: "10GiB"})
    assert (seen["device_map"], seen["max_memory"]) == ("auto", {0: "10GiB"})


def test_processor_comes_first_and_from_the_same_revision(monkeypatch):
    """What it lacks is said before gigabytes of weights are read."""
    seen = []

    def load_processor(source, **kwargs):
        seen.append((source, kwargs))
        raise ImportError("no torchvision")

    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: seen.append("model"))
    monkeypatch.setattr(load, "load_processor", load_processor)
    with pytest.raises(gl.GlimpseError, match="no torchvision"):
        gl.load_backbone("some/model", revision="main", max_memory={0: "10GiB"})
    assert seen == [("some/model", {"revision": "main"})]


@pytest.mark.parametrize("name", ["glimpse-tiny", "random:smolvlm-256m"])
def test_flash_attention_without_its_package(name):
    if is_flash_attn_2_available():
        pytest.skip("flash_attn is installed")
    with pytest.raises(gl.GlimpseError, match=r"FlashAttention2.*Install what is missing.*sdpa"):
        gl.load_backbone(name, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("name", ["glimpse-tiny", "random:smolvlm-256m"])
def test_unknown_attention(name):
    with pytest.raises(gl.GlimpseError, match=r"'?nonsense.*Choose another `attn_implementation`"):
        gl.load_backbone(name, attn_implementation="nonsense", device_map=None)


@pytest.mark.parametrize("name", ["glimpse-tiny", "random:smolvlm-256m"])
@pytest.mark.parametrize("dtype", ["float17", "nn"])
def test_unknown_data_type(name, dtype):
    with pytest.raises(gl.GlimpseError, match=f"such as float32 or bfloat16, but got '{dtype}'"):
        gl.load_backbone(name, dtype=dtype)


def test_unknown_quantization():
    with pytest.raises(gl.GlimpseError, match="bnb-4bit, bnb-8bit or None, but got 'int3'"):
        gl.load_backbone("some/model", quantization="int3")


@pytest.mark.parametrize(
    ("error", "said"),
    [  # as transformers raises them
        (
            ImportError("\nX requires the Torchvision library but it was not found in your environment. Check out\n"),
            r"requires the Torchvision library .* environment\. Install it: .*glimpse_lightning\[video\]",
        ),
        (
            ValueError("folder requires `torchvision` to be installed. Please"),
            r"pip install 'glimpse_lightning\[video\]'",
        ),
        (ImportError("Package `num2words` is required to run SmolVLM processor."), r"num2words.*\[video\]"),
        (
            ImportError("X requires the protobuf library."),
            r"a package that is missing, or .*: X .*protobuf library\. Install it\.",
        ),
        (ImportError("InternVLVideoProcessor requires the Torchvision library.\nMore."), r"library\. .*\[video\]"),
        (RuntimeError("operator torchvision::nms does not exist"), r"not made for torch \d.*nms.*\[video\]' torch==\d"),
        (ValueError("Unrecognized processing class"), "Could not load backbone .*: Unrecognized processing class"),
    ],
)
def test_processor_without_its_package_says_what_to_install(monkeypatch, tmp_path, error, said):
    def fails(name, **_):
        raise error

    model = FAMILIES["internvl"]()
    model.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(gl.GlimpseError, match="holds a processor, but no tokenizer: put the"):
        gl.load_backbone(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(processing, "is_torchvision_available", lambda: False)
    monkeypatch.setattr(processing.AutoProcessor, "from_pretrained", fails)
    with pytest.raises(gl.GlimpseError, match=said):
        gl.load_backbone(str(tmp_path))


def test_every_extra_that_an_error_names_installs_the_package():
    config = ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    for package, extra in processing.EXTRAS.items():
        assert package in config["options.extras_require"][extra]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_with_a_model_alone(tmp_path, family, attention):
    """What `save_pretrained` wrote loads as the very same model, and takes tensors; nothing of ours is in the file."""
    wrapped = gl.wrap_backbone(FAMILIES[family](attention))
    wrapped.model.save_pretrained(tmp_path)
    assert "glimpse" not in (tmp_path / "config.json").read_text()
    loaded = gl.load_backbone(str(tmp_path), attn_implementation=attention)
    assert type(loaded) is type(wrapped)
    assert loaded.processor is None
    inputs = wrapped.example_inputs([[(3, 4)], []])
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.4))
    outs = [gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**inputs) for backbone in (wrapped, loaded)]
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert torch.equal(outs[0].keep[0], outs[1].keep[0])
    with pytest.raises(gl.GlimpseError, match="has no processor"):
        loaded.decode(torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_unwrapping_gives_the_model_back(attention):
    """Its attention is Hugging Face's own again, and other backbones of the same attention do not miss it."""
    other = gl.wrap_backbone(FAMILIES["llava"](attention))
    model = FAMILIES["qwen2_5_vl"](attention)
    backbone = gl.wrap_backbone(model)
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.4))
    pruned, inputs = gl.PrunedVLM(other, gl.Pruner([stage])), other.example_inputs([[(3, 4)], [(2, 2), (4, 4)]])
    before = pruned.generate(**inputs, max_new_tokens=4)
    assert backbone.unwrap() is model
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == attention
    assert not hasattr(ALL_ATTENTION_FUNCTIONS.get(attention), "untapped")
    assert torch.equal(pruned.generate(**inputs, max_new_tokens=4), before)
    again = gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**backbone.example_inputs([[(3, 4)]]))
    assert 0 < again.keep[0].sum() < 12


def test_missing_model_names_what_can_be_loaded(tmp_path):
    with pytest.raises(gl.GlimpseError, match=re.escape("glimpse-tiny")):
        gl.load_backbone(str(tmp_path))


def test_unsupported_architecture_lists_supported_ones():
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(gl.GlimpseError, match=r"LlamaForCausalLM.*Qwen3VLForConditionalGeneration"):
        gl.wrap_backbone(model)


@pytest.mark.parametrize("architecture", support.UNFIT)
def test_architectures_that_do_not_fit_say_why(architecture):
    model = type(architecture, (LlamaForCausalLM,), {})(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(gl.GlimpseError, match=rf"Unsupported architecture {architecture}: its? "):
        gl.wrap_backbone(model)


@pytest.mark.parametrize("name", ["./models/none", "/models/none", "~/none", "my/models/none"])
def test_a_folder_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(gl.GlimpseError, match=f"There is no folder '{name}'"):
        gl.load_backbone(name)


def test_a_folder_of_a_similar_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "Qwen2.5-VL-7B-Instruct").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        gl.GlimpseError, match=r"no folder '\./models/Qwen2\.5-VL-7B', but models/Qwen2\.5-VL-7B-Instruct;"
    ):
        gl.load_backbone("./models/Qwen2.5-VL-7B")
    name = "models/Qwen2.5-VL-7B-Instrct"  # or a hub id
    with pytest.raises(gl.GlimpseError, match=r"of this name either, but models/Qwen2\.5-VL-7B-Instruct"):
        gl.load_backbone(name, local_files_only=True)


def test_a_folder_below_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").symlink_to(source_of("glimpse-tiny"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gl.load_backbone("~/mine").name == str(tmp_path / "mine")
