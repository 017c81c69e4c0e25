"""The words of GlyphVQA, and the tokenizer of glimpse-tiny: one token per word and per glyph."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "hexagon")
# No two glyphs that a small, blurred rendering confuses (O/0/D/Q, I/1/J, Z/2, G/6, V/U, W/M/N, 5/S, 8/B).
GLYPHS = tuple("234679ABCEFHKLMPRSTUXY")
LABELS = ("TEL", "DAY", "SUM", "BOX", "FAX", "AGE", "KEY", "LOT")
SIDES = ("left", "right", "above", "below")
COUNTS = tuple("123456789")
PLACES = ("##0", "##1", "##2", "##3", "##4")
"""Tokens for a number of dots (0: a label); questions and answers do not use them."""
VISUAL_WORDS = COLOURS + SHAPES + GLYPHS + LABELS
"""Every word that a piece of the image can show; the visual tokens are trained to predict the words that they show."""

_OTHER_WORDS = (
    "what is in the drawn holds compare colours colors shapes of and same different list all name count each read row "
    "a an are at be by can color colour describe digit do does else find first form from glyph glyphs has have how "
    "image it label last letter letters many me more no not object objects on one or please picture second shape show "
    "tell than that there this to two under which with yes you"
)

PAD, BOS, EOS, ASSISTANT = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|assistant|>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
UNKNOWN = "<|unknown|>"
SPECIALS = (PAD, BOS, EOS, ASSISTANT, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, UNKNOWN)

# One token between the question and the answer: the key of a GlyphVQA question stays next to last.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|assistant|>' }}{% else %}{{ '<|im_start|>' }}{% endif %}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- if message.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""


def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special tokens, words, then every ASCII character at and after a start."""
    characters = string.ascii_letters + string.digits + string.punctuation
    words = VISUAL_WORDS + SIDES + COUNTS + tuple(_OTHER_WORDS.split()) + tuple(characters)
    return list(dict.fromkeys(SPECIALS + words + tuple("##" + character for character in characters)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The fast tokenizer: words by longest match, unknown words by characters, decoded with one space between words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(vocabulary())}
    wordpiece = models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=1000)
    tokenizer = Tokenizer(wordpiece)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=None,
        eos_token=EOS,
        additional_special_tokens=[BOS, ASSISTANT, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD],
        extra_special_tokens={"image_token": IMAGE_PAD, "video_token": VIDEO_PAD},
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
