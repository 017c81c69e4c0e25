"""``generate``: every way of Hugging Face's to decode, unpruned equal to its own, pruned independent of batch mates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.generation import BaseStreamer, LogitsProcessor, RepetitionPenaltyLogitsProcessor

import glimpse_lightning as gl
from glimpse_lightning.runtime.errors import GlimpseError

SIZES = [[(3, 4)], [(2, 3), (5, 2)], [], [(4, 4)]]


# The families whose decoders differ most: windows alone; positions of three axes; windows, and images that see ahead.
# The others generate by the same code, over what tests/backbones/test_conformance.py compares; they are slow tests.
DIFFER = ("llava_next", "qwen2_5_vl", "gemma3")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in DIFFER else pytest.mark.slow) for name in FAMILIES],
)
def backbone(request) -> gl.Backbone:
    return gl.wrap_backbone(FAMILIES[request.param]())


def pruned(backbone: gl.Backbone, **policy: Any) -> gl.PrunedVLM:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.4, **policy))
    return gl.PrunedVLM(backbone, gl.Pruner([stage]))


def expandable(backbone: gl.Backbone) -> list[list[tuple[int, int]]]:
    """Sizes that Hugging Face can repeat for beams: older versions repeat packed images row by row, so that a sample
    with two of them, or none, would see its neighbours' ones.
    """
    own = type(backbone.model)._expand_inputs_for_generation is not GenerationMixin._expand_inputs_for_generation
    packed = backbone.facts.model_type not in ("idefics3", "smolvlm")
    knows = own or not packed or hasattr(GenerationMixin, "_expand_multimodal_outputs")
    return SIZES if knows else [[(3, 4)], [(4, 4)]]


def penalties_ignore_padding() -> bool:
    """Older versions of Hugging Face penalise the padding token in a padded row, and only there."""
    try:
        RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=torch.zeros(1, dtype=torch.long))
    except ValueError:
        return False
    return True


def tokenizer() -> PreTrainedTokenizerFast:
    # "abcdef" is what Hugging Face's stop strings probe a tokenizer with.
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 119)} | {"abcdef": 119}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


class Collected(BaseStreamer):
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.clone())

    def end(self) -> None:
        self.ended = True


class SeenPrompts(LogitsProcessor):
    """Counts how many prompt tokens a logits processor sees."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return scores


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "beams returned": {"num_beams": 4, "num_return_sequences": 3, "do_sample": False, "length_penalty": 2.0},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "samples returned": {"do_sample": True, "num_return_sequences": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "minimum length": {"do_sample": False, "min_new_tokens": 7},
}


def answers_as_hugging_face(backbone: gl.Backbone, options: dict[str, Any]) -> None:
    inputs = backbone.example_inputs(expandable(backbone))
    set_seed(3)
    expected = backbone.model.generate(**backbone.hf_inputs(inputs), max_new_tokens=7, **options)
    set_seed(3)
    ids = gl.PrunedVLM(backbone).generate(**inputs, max_new_tokens=7, **options)
    assert torch.equal(ids, expected[:, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_unpruned_equals_hugging_face(backbone, options):
    answers_as_hugging_face(backbone, options)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in DIFFER])
def test_every_family_repeats_its_images_for_beams(family):
    answers_as_hugging_face(gl.wrap_backbone(FAMILIES[family]()), OPTIONS["beams returned"])


def test_stop_strings_and_streamer_equal_hugging_face(backbone):
    inputs = backbone.example_inputs(SIZES[:1])
    free = gl.PrunedVLM(backbone).generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    stop = next(token for token in free[0, 1:].tolist() if token > 1)  # 0 and 1 are no words
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "stop_strings": [f"w{stop}"],
        "tokenizer": tokenizer(),
    }
    mine, theirs = Collected(), Collected()
    ids = gl.PrunedVLM(backbone).generate(**inputs, **options, streamer=mine)
    backbone.model.generate(**backbone.hf_inputs(inputs), **options, streamer=theirs)
    assert ids.shape[1] < 6
    assert mine.ended
    assert [piece.tolist() for piece in mine.pieces] == [piece.tolist() for piece in theirs.pieces]


@pytest.mark.parametrize("name", ["greedy", "beams", "beams returned", "repetition penalty"])
def test_pruned_rows_equal_single_runs(backbone, name):
    """Ragged retention: each row of a batch decodes as it does alone, beams included."""
    if name == "repetition penalty" and not penalties_ignore_padding():
        pytest.skip("this version of transformers penalises padding")
    model, options = pruned(backbone), OPTIONS[name]
    returned = options.get("num_return_sequences", 1)
    batch = model.generate(**backbone.example_inputs(SIZES), max_new_tokens=6, **options)
    for index, sizes in enumerate(SIZES):
        alone = model.generate(**backbone.example_inputs([sizes], first_sample=index), max_new_tokens=6, **options)
        rows = batch[index * returned : (index + 1) * returned, : alone.shape[1]]
        assert torch.equal(rows, alone), f"sample {index}"


@pytest.mark.parametrize("options", ["beams returned", "samples returned", "repetition penalty"])
def test_uneven_caches_decode_like_even_ones(backbone, options):
    """Keeping everything, layer by layer equals Hugging Face's step; pruning, a sample alone equals it in a batch."""
    inputs, chosen = backbone.example_inputs(SIZES), OPTIONS[options]
    everything = gl.PruneStage(
        1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(1.0), early_kv="keep", positions="renumber"
    )
    rows = []
    for pruner in (None, gl.Pruner([everything])):
        set_seed(3)
        rows.append(gl.PrunedVLM(backbone, pruner).generate(**inputs, max_new_tokens=5, **chosen))
    assert torch.equal(*rows)
    if chosen["do_sample"]:  # draws depend on the batch
        return
    if options == "repetition penalty" and not penalties_ignore_padding():
        return  # what a sample is penalised for depends on its batch
    model = pruned(backbone)
    model.pruner.stages[0].early_kv = "keep"
    batch = model.generate(**inputs, max_new_tokens=5, **chosen)
    returned = chosen.get("num_return_sequences", 1)
    for index, sizes in enumerate(SIZES):
        alone = model.generate(**backbone.example_inputs([sizes], first_sample=index), max_new_tokens=5, **chosen)
        assert torch.equal(batch[index * returned : (index + 1) * returned, : alone.shape[1]], alone)


def test_one_prefill_serves_many_continuations(backbone):
    model, inputs = pruned(backbone), backbone.example_inputs(SIZES)
    out = model.prefill(**inputs)
    penalty = OPTIONS["repetition penalty"]
    whole = model.generate(**inputs, max_new_tokens=5, **penalty)
    assert torch.equal(model.generate(prefill=out, max_new_tokens=5, **penalty), whole)
    right = backbone.example_inputs(SIZES, padding_side="right")
    assert torch.equal(model.generate(**right, max_new_tokens=5, keys=model._keys(None, inputs), **penalty), whole)
    before = [layer.keys.clone() for layer in out.cache.layers]
    greedy = model.generate(prefill=out, max_new_tokens=5, do_sample=False)
    assert torch.equal(greedy, model.generate(**inputs, max_new_tokens=5, do_sample=False))
    samples = model.generate(prefill=out, max_new_tokens=5, do_sample=True, num_return_sequences=8)
    assert samples.shape[0] == 8 * len(SIZES)
    assert torch.equal(model.generate(prefill=out, max_new_tokens=5, do_sample=False), greedy)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(out.cache.layers, before, strict=True))


def test_a_fork_repeats_every_sample(backbone):
    model, inputs = pruned(backbone), backbone.example_inputs(SIZES)
    out = model.prefill(**inputs)
    penalty = OPTIONS["repetition penalty"]
    once = model.generate(prefill=out, max_new_tokens=5, **penalty)
    twice = model.generate(prefill=out.fork(2), max_new_tokens=5, **penalty)
    assert torch.equal(twice, once.repeat_interleave(2, 0))


def test_first_token_of_samples_comes_from_the_prefill(backbone):
    """With a temperature near zero every returned sample is the greedy answer."""
    model, inputs = pruned(backbone), backbone.example_inputs(SIZES)
    greedy = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    cold = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=True, temperature=1e-4, num_return_sequences=3
    )
    assert torch.equal(cold, greedy.repeat_interleave(3, 0))


def test_dict_output_is_stripped_and_processors_see_the_prompt(backbone):
    model, inputs, seen = pruned(backbone), backbone.example_inputs(SIZES), SeenPrompts()
    out = model.generate(
        **inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True,
        output_scores=True, output_logits=True, logits_processor=LogitsProcessorList([seen]),
    )  # fmt: skip
    assert out.sequences.shape == (len(SIZES), 3)
    assert len(out.logits) == len(out.scores) == 3
    length = inputs["input_ids"].shape[1]
    assert seen.lengths == [length, length + 1, length + 2]


def test_budget_per_item(backbone):
    """Per sample, images compete for one budget; per item, each has its own."""
    inputs = backbone.example_inputs([[(2, 4), (4, 4)]])
    out = pruned(backbone, per="item").prefill(**inputs)
    sizes = out.tokens.grid.prod(-1)
    kept = torch.zeros_like(sizes).index_add(0, out.tokens.item, out.keep[0].long())
    assert (kept - 0.4 * sizes).abs().max() <= 1
    by_sample = pruned(backbone).prefill(**inputs)
    assert abs(int(by_sample.keep[0].sum()) - 0.4 * int(sizes.sum())) <= 1


def test_text_only_prompts_pass_untouched(backbone):
    inputs = backbone.example_inputs([[], []])
    assert "pixel_values" not in inputs
    model, plain = pruned(backbone), gl.PrunedVLM(backbone)
    assert torch.equal(model.prefill(**inputs).logits, plain.prefill(**inputs).logits)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), plain.generate(**inputs, max_new_tokens=4))


def test_unknown_argument_is_named(backbone):
    with pytest.raises(gl.GlimpseError, match="max_tokens"):
        gl.PrunedVLM(backbone).generate(**backbone.example_inputs([[]]), max_tokens=4)


def test_cache_is_always_used(backbone):
    """Models saved while training with gradient checkpointing say `use_cache: false`; decoding needs the cache."""
    model, inputs = pruned(backbone), backbone.example_inputs(SIZES)
    expected = model.generate(**inputs, max_new_tokens=4)
    backbone.model.generation_config.use_cache = False
    try:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4), expected)
    finally:
        backbone.model.generation_config.use_cache = True
    given = GenerationConfig(max_new_tokens=4, use_cache=False)
    assert torch.equal(model.generate(**inputs, generation_config=given), expected)
    assert given.use_cache is False  # the caller's own object stays as it is
    with pytest.raises(gl.GlimpseError, match="use_cache=False"):
        model.generate(**inputs, max_new_tokens=4, use_cache=False)


def test_prompt_goes_by_name(backbone):
    with pytest.raises(gl.GlimpseError, match=r"got a Tensor\. Pass the prompt by name"):
        gl.PrunedVLM(backbone).generate(backbone.example_inputs([[]])["input_ids"])


def test_static_cache_decodes_the_same_in_less_room(backbone):
    """Fixed shapes sized by what is left of the prompt, padded rows included."""
    inputs, seen = backbone.example_inputs(SIZES), []
    model = pruned(backbone)
    hook = backbone.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["past_key_values"].layers[-1].keys.shape[2]), with_kwargs=True
    )
    try:
        static = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, cache_implementation="static")
    finally:
        hook.remove()
    dynamic = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(static, dynamic)
    left = model.prefill(**inputs).attention_mask.shape[1]
    assert set(seen) == {left + 3} or backbone.window(len(backbone.layers) - 1) is not None  # which it holds
    assert left + 3 < inputs["input_ids"].shape[1] + 3


def test_static_cache_without_padding_or_known_tokens(backbone):
    model = pruned(backbone)
    inputs = backbone.example_inputs([[(3, 4)]])
    length = {"max_new_tokens": 3, "min_new_tokens": 3}
    want = model.generate(**inputs, **length)
    assert torch.equal(model.generate(**inputs, **length, cache_implementation="static"), want)
    with pytest.raises(GlimpseError, match="`keys` or `input_ids`"):
        model.prefill(prompt=backbone.embed(inputs))
    embedded = model.prefill(prompt=backbone.embed(inputs), keys=torch.zeros(1, dtype=torch.long))
    assert torch.equal(model.generate(prefill=embedded, **length, cache_implementation="static"), want)


def test_caches_that_cannot_hold_a_pruned_prompt_are_refused(backbone):
    with pytest.raises(GlimpseError, match=r"`cache_implementation` to be one of None, dynamic, static"):
        pruned(backbone).generate(**backbone.example_inputs([[(3, 4)]]), cache_implementation="quantized")


DRAFTS = [
    pytest.param(family, stages, marks=() if family in DIFFER or stages == "even" else pytest.mark.slow)
    for stages in ("none", "even", "uneven", "renumbered")
    for family in FAMILIES
]


@pytest.mark.parametrize(("family", "stages"), DRAFTS)
def test_tokens_drafted_from_the_prompt_change_no_answer(family, stages):
    """Of a prompt that repeats itself, so that tokens are drafted from the first step on."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = backbone.example_inputs([[(4, 4)]])
    again = inputs["input_ids"][:, -2:].repeat(1, 4)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], again], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(again)], 1)
    kinds = {"even": {}, "uneven": {"early_kv": "keep"}, "renumbered": {"positions": "renumber"}}
    stage = {} if stages == "none" else kinds[stages]
    half = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5), **stage)
    model = gl.PrunedVLM(backbone, None if stages == "none" else gl.Pruner([half]))
    plain = {"max_new_tokens": 12, "do_sample": False}
    wanted = model.generate(**inputs, **plain)
    prefill = model.prefill(**inputs)
    asked: list[int] = []
    hook = backbone.layers[0].register_forward_hook(lambda layer, args, out: asked.append(args[0].shape[1]))
    drafted = model.generate(prefill=prefill, **plain, prompt_lookup_num_tokens=4)
    hook.remove()
    assert torch.equal(drafted, wanted)
    assert max(asked) > 1  # several tokens in a step
    embedded = model.prefill(prompt=backbone.embed(inputs, model.vision_layers), keys=torch.zeros(1).long())
    alone = model.generate(prefill=embedded, **plain)  # without its tokens: drafted from the answer, if at all
    assert torch.equal(model.generate(prefill=embedded, **plain, prompt_lookup_num_tokens=4), alone)


def test_a_prefill_takes_no_second_prompt(backbone):
    model, inputs = pruned(backbone), backbone.example_inputs([[(3, 4)]])
    prefill = model.prefill(**inputs)
    with pytest.raises(GlimpseError, match=r"got both: keys, input_ids, attention_mask.* would not be read"):
        model.generate(prefill=prefill, keys=torch.zeros(1).long(), **inputs, max_new_tokens=2)
    assert torch.equal(model.generate(prefill=prefill, max_new_tokens=2, use_cache=None),
                       model.generate(**inputs, max_new_tokens=2))  # fmt: skip


IMPOSSIBLE = {
    "assistant_model": "itself", "output_attentions": True, "output_hidden_states": True,
    "custom_generate": lambda *args, **kwargs: None, "guidance_scale": 1.5, "negative_prompt_ids": torch.ones(1, 2),
    "penalty_alpha": 0.6, "dola_layers": "high", "num_beam_groups": 2, "force_words_ids": [[3]], "token_healing": True,
    "prefill_chunk_size": 4, "past_key_values": DynamicCache(), "inputs_embeds": torch.ones(1, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_options_that_cannot_work_are_named(option):
    """With a pruner and without, since the prompt's own layers run here in both."""
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    inputs = backbone.example_inputs([[(4, 4)]])
    value = backbone.model if option == "assistant_model" else IMPOSSIBLE[option]
    said = {"output_attentions": "returning attentions", "output_hidden_states": "returning hidden states"}
    named = said.get(option, f"`{option}`")
    for model in (pruned(backbone), gl.PrunedVLM(backbone)):
        with pytest.raises(gl.GlimpseError, match=rf"does not allow {named} where.*backbone\.model\.generate"):
            model.generate(**inputs, max_new_tokens=2, **{option: value})


def test_options_that_cannot_work_are_found_in_configurations():
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    inputs, model = backbone.example_inputs([[(4, 4)]]), pruned(backbone)
    given = GenerationConfig(max_new_tokens=2, penalty_alpha=0.6)
    with pytest.raises(gl.GlimpseError, match="does not allow `penalty_alpha`"):
        model.generate(**inputs, generation_config=given)
    plain = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    expected = model.generate(**inputs, **plain)
    neutral = {"guidance_scale": 1.0, "output_attentions": False, "penalty_alpha": 0.0, "num_beam_groups": 1}
    assert torch.equal(model.generate(**inputs, **plain, **neutral), expected)
    backbone.model.generation_config.output_hidden_states = True
    with pytest.raises(gl.GlimpseError, match="does not allow returning hidden states"):
        model.generate(**inputs, **plain)
    assert torch.equal(model.generate(**inputs, **plain, output_hidden_states=False), expected)
