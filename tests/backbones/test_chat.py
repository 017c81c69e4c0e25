"""Prompts and targets as chat templates write them: each trait of a published template in one made here."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

import glimpse_lightning as gl
from glimpse_lightning.backbones.processing import ImageOnlyProcessor

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<image>", "<end>"]
WORDS = ["what is this", "User: what\n", "Assistant: left", " left", "left", " right", "right", "[/INST]", "yes."]
BODY = (
    "{%- for message in messages %}{% if message.role == 'assistant' %}ANSWER{% else %}"
    "<turn>User:{% for part in message.content %}{{ '<image>' if part.type == 'image' else ' ' + part.text }}"
    "{% endfor %}END{% endif %}{% endfor %}{% if add_generation_prompt %}HEADER{% endif %}"
)
SAID = "{{ message.content[0].text }}"


def template(header: str = "<turn>Assistant:", answer: str = "", end: str = "<end>", start: str = "") -> str:
    """A template whose prompts end with ``header`` and whose answers are written as ``answer``."""
    body = BODY.replace("ANSWER", answer or header + SAID + end).replace("END", end).replace("HEADER", header)
    return start + body


def byte_level() -> Tokenizer:
    """A small GPT-like tokenizer, in which a space belongs to the word that follows it."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(WORDS * 9, trainer)
    return words


def metaspace() -> Tokenizer:
    """A small Llama-like tokenizer, which puts a space in front of a text."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyzAINSTU:[]/.\n", "▁left", "left"]
    parts = ["le", "ft", "▁le"]
    merges = [("l", "e"), ("f", "t"), ("▁", "le"), ("▁le", "ft"), ("le", "ft")]
    vocab = {token: number for number, token in enumerate([*SPECIAL, *pieces, *parts])}
    words = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return words


def backbone_with(chat: str, words: Tokenizer | None = None, ends: object = 6, adds_bos: bool = False) -> gl.Backbone:
    words = words or byte_level()
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        additional_special_tokens=["<turn>", "<image>"],
    )  # fmt: skip
    side = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side), tokenizer=tokenizer,
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat,
    )  # fmt: skip
    backbone = gl.wrap_backbone(FAMILIES["llava"](), processor)
    backbone.model.generation_config.eos_token_id = ends
    return backbone


def sample(answer: str | None = "left", images: int = 1, question: str = "what is this") -> gl.Sample:
    pictures = [Image.new("RGB", (20, 20), (40 * number, 0, 0)) for number in range(images)]
    return gl.Sample("s", 0, question, [] if answer is None else [answer], images=pictures)


def targets(backbone: gl.Backbone, *samples: gl.Sample) -> list[list[str]]:
    batch = backbone.collate(samples)
    rows = zip(batch.answer_ids, batch.answer_mask.bool(), strict=True)
    return [backbone.tokenizer.convert_ids_to_tokens(row[mask].tolist()) for row, mask in rows]


@pytest.mark.parametrize("start", ["", "<bos>", "{{ bos_token }}"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompts_are_those_of_the_processors_template(start, adds_bos):
    """One bos, whether the template writes it, the tokenizer adds it, or both; images anywhere in the batch."""
    backbone = backbone_with(template(start=start), adds_bos=adds_bos)
    samples = [sample(images=1), sample(images=2, question="what"), sample(images=0)]
    inputs = backbone.collate(samples).inputs
    bos = "<bos>" if adds_bos or start else ""
    for row, mask, one in zip(inputs["input_ids"], inputs["attention_mask"].bool(), samples, strict=True):
        content = [{"type": "image", "image": image} for image in one.images]
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": one.question}]}]
        expected = backbone.processor.apply_chat_template(
            turn, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"][0]
        assert torch.equal(row[mask], expected)
        text = f"<turn>User:{'<image>' * 16 * len(one.images)} {one.question}<end><turn>Assistant:"
        assert backbone.tokenizer.decode(row[mask]) == bos + text
    assert inputs["pixel_values"].shape[0] == 3
    assert not mask.all() and mask[-1]  # padded on the left


@pytest.mark.parametrize(
    ("chat", "ends", "expected"),
    [
        (template(), 6, ["left", "<end>"]),
        (template(end="<end>\n"), [1, 6], ["left", "<end>"]),  # an end of turn, then a line break; eos is listed first
        (template(answer="<turn>Assistant: " + SAID + "<end>\n"), 6, ["Ġleft", "<end>"]),
        (template(answer="<turn>Assistant: " + SAID + "<eos>"), [6, 1], ["Ġleft", "<eos>"]),
        (template(end=" "), [1, 6], ["left", "<eos>"]),  # ends with nothing but a space
        (template(end="<end>\n"), 1, ["left", "<eos>"]),  # generation does not stop where the template ends a turn
        (template(answer="<turn>Assistant:<turn>\n\n<turn>\n" + SAID + "<end>"), 6, None),  # a thought that is empty
    ],
)  # fmt: skip
def test_targets_are_those_of_the_whole_conversation(chat, ends, expected):
    backbone = backbone_with(chat, ends=ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (target,) = targets(backbone, sample())
    expected = expected or backbone.tokenizer.tokenize("<turn>\n\n<turn>\nleft<end>")
    assert target == expected


def test_answers_of_several_lengths_and_none():
    backbone = backbone_with(template(answer="<turn>Assistant: " + SAID + "<end>\n"), ends=[1, 6])
    long = sample("left right", images=2)
    rows = targets(backbone, sample(), long, sample(None), sample("", images=0), sample("yes. \n"))
    assert rows[:2] == [["Ġleft", "<end>"], ["Ġleft", "Ġright", "<end>"]]
    assert rows[2] == []
    assert rows[3] == ["Ġ", "<end>"]
    assert backbone.tokenizer.convert_tokens_to_string(rows[4]) == " yes. \n<end>"
    spaced = backbone_with(template(end=" "), ends=1)
    assert targets(spaced, sample("left \n")) == [["left", "<eos>"]]
    trimmed = backbone_with(template(answer="<turn>Assistant:{{ message.content[0].text | trim }}<end>"))
    assert targets(trimmed, sample(" left\n")) == [["left", "<end>"]]


@pytest.mark.parametrize("answer", ["e", "nd", "turn", "s", ":", "7031852946", "END\nHEADER"])
def test_answers_that_look_like_a_part_of_the_template(answer):
    for end, ends in (("<end>\n", 6), (" e", 1)):
        backbone = backbone_with(template(answer="<turn>Assistant: " + SAID + end), ends=ends)
        (target,) = targets(backbone, sample(answer))
        assert backbone.tokenizer.convert_tokens_to_string(target) == f" {answer}" + ("<end>" if ends == 6 else "<eos>")


def test_answer_that_merges_with_the_end_of_the_prompt():
    """A prompt that ends with a space keeps it as a token of its own, and the answer comes without."""
    for words, expected in ((byte_level(), ["left", "<end>"]), (metaspace(), ["left", "<end>"])):
        backbone = backbone_with(template(header="<turn>A: "), words)
        with pytest.warns(UserWarning, match="in the middle of a token"):
            assert targets(backbone, sample()) == [expected]
        ids = backbone.collate([sample()]).inputs["input_ids"][0]
        assert backbone.tokenizer.decode(ids).endswith("A: ")


def test_answer_that_no_tokens_can_follow_with_is_refused():
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, "A:", "A:left"])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backbone = backbone_with(template(header=" A:"), words)
    with pytest.raises(gl.GlimpseError, match=r"'left<end>' follow.*ends with.*A:'.*processor\.chat_template"):
        backbone.collate([sample()])


def test_llama_like_tokenizer_puts_no_space_in_front_of_an_answer():
    backbone = backbone_with(template(header=" [/INST]", answer=" [/INST]" + SAID + "<end>"), metaspace())
    assert targets(backbone, sample()) == [["left", "<end>"]]


def test_another_header_in_front_of_answers():
    """As in LLaVA-OneVision, whose prompts end with a line break, but whose answers follow a space and one."""
    chat = template(header="<turn>assistant\n", answer="<turn>assistant \n" + SAID + "<end>")
    backbone = backbone_with(chat)
    with pytest.warns(UserWarning, match="another header"):
        assert targets(backbone, sample()) == [["left", "<end>"]]


@pytest.mark.parametrize("answer", ["{{ raise_exception('no answers here') }}", "{{ nothing.at.all }}", "<turn>"])
def test_template_without_answers(answer):
    backbone = backbone_with(template(answer=answer, header=" A: "), ends=[1, 6])
    with pytest.warns(UserWarning, match="writes no answers"):
        assert targets(backbone, sample(), sample(None)) == [["left", "<eos>"], []]


@pytest.mark.parametrize("said", ["{{ message.content + '<end>' }}", "{{ message.content }}<end>"])
def test_template_that_takes_an_answer_as_plain_text_only(said):
    backbone = backbone_with(template(answer="<turn>Assistant: " + said))
    assert targets(backbone, sample()) == [["Ġleft", "<end>"]]


def test_template_that_refuses_a_system_role():
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    assert targets(backbone_with(template(start=refusal)), sample()) == [["left", "<end>"]]


@pytest.mark.parametrize("chat", ["{{ raise_exception('only text') }}", None])
def test_template_that_cannot_write_a_question_is_named(chat):
    with pytest.raises(gl.GlimpseError, match=r"^s: .*cannot write this question.*processor\.chat_template"):
        backbone_with(chat).collate([sample()])


def test_a_model_that_never_stops_has_no_targets():
    with pytest.raises(gl.GlimpseError, match="eos_token_id"):
        backbone_with(template(), ends=None).collate([sample()])


def test_text_ends_where_generation_stops():
    """Also at a token that is not special to the tokenizer, which decoding would print."""
    backbone = backbone_with(template())
    left, right, end = (backbone.tokenizer.encode(word) for word in (" left", " right", "yes."))
    backbone.model.generation_config.eos_token_id = [1, *end]
    rows = torch.tensor([[*left, *end, 0, 0], [*right, 1, *left, *end]])
    assert backbone.decode(rows) == ["left", "right"]
    assert backbone.decode([rows[0, :2], rows[1, :1]]) == ["left", "right"]
    assert backbone.until_end(rows) == [left, right]


def test_generation_stops_at_each_of_the_ends():
    backbone = gl.load_backbone("glimpse-tiny")
    batch = backbone.collate([gl.GlyphVQA("val", image_size=224)[0]])
    ends = backbone.end_token_ids
    assert batch.answer_ids[0, -1] in ends
    model = gl.PrunedVLM(backbone)
    first = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)[0, 0]
    backbone.model.generation_config.eos_token_id = [*ends, int(first)]
    hf = backbone.model.generate(**backbone.hf_inputs(batch.inputs), max_new_tokens=4, do_sample=False)
    answer = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    assert answer.tolist() == hf[:, batch.inputs["input_ids"].shape[1] :].tolist() == [[int(first)]]
    assert backbone.decode(answer) == [""]


def test_stand_in_processor_tokenizes_as_its_own_chat_template():
    backbone = gl.load_backbone("glimpse-tiny")
    assert isinstance(backbone.processor, ImageOnlyProcessor)
    sample = gl.GlyphVQA("val", image_size=224)[0]
    batch = backbone.collate([sample])
    prompt = f"<|im_start|><|vision_start|>{'<|image_pad|>' * 64}<|vision_end|>{sample.question}<|assistant|>"
    assert batch.inputs["input_ids"][0].tolist() == backbone.tokenizer.encode(prompt)
    assert batch.answer_ids[0].tolist() == backbone.tokenizer.encode(f"{sample.answers[0]}<|im_end|>")
    with pytest.raises(gl.GlimpseError, match="audio"):
        backbone.processor(prompt, audio=[torch.zeros(9)])


def test_stand_in_takes_the_processors_template_before_the_tokenizers(tmp_path):
    backbone = gl.load_backbone("glimpse-tiny")
    backbone.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content[0].text }} A:"}')
    assert "A:" not in (AutoTokenizer.from_pretrained(tmp_path).chat_template or "")
    loaded = gl.load_backbone(str(tmp_path))
    content = [{"type": "text", "text": "what"}]
    assert loaded.processor.apply_chat_template([{"role": "user", "content": content}]) == "what A:"


@pytest.mark.parametrize("answer", [None, "left"])
def test_a_processor_without_a_template_says_where_one_goes(answer):
    backbone = backbone_with(template())
    backbone.processor.chat_template = None
    with pytest.raises(gl.GlimpseError, match=r"^s: .*not have a chat template.*`chat_template\.jinja`.*hf download"):
        backbone.collate([sample(answer)])
