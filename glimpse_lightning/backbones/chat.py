"""Questions and answers in the model's own chat template.

A prompt's tokens are those of the processor's ``apply_chat_template``. The tokens to predict after it come from the
conversation that the template writes with the answer in it, by the first of these rules that applies:

1. The conversation begins with the prompt: everything after the prompt.
2. The template writes another header in front of an answer than at the end of a prompt: the answer and everything
   after it, following the prompt's header.
3. The template writes no answers: the plain text of the answer, following the prompt.

The tokens to predict end with the first end token of generation. If the template writes no end token, the text after
the answer and white space at the answer's end are replaced by the first of the generation config's ``eos_token_id``. If
the first characters to predict share a token with the last ones of the prompt, the prompt keeps its own tokens. Rules 2
and 3 and a shared token cause a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from lightning.pytorch.utilities import rank_zero_warn

from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import GlimpseError

MARK = "7031852946"
"""Stand-in for an answer, by which its place in a template is found: characters that no template writes by itself."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as text.

    Attributes:
        prompt: the question, up to where generation starts.
        reply: text from there to the last character of the answer.
        tail: text of the template after the answer.
    """

    prompt: str
    reply: str
    tail: str


def prompt_inputs(samples: Sequence[Sample], processor: Any) -> dict[str, Any]:
    """Processor outputs for the samples' prompts, padded on the left.

    Raises:
        GlimpseError: if the processor has no chat template.
    """
    try:
        return conversation_inputs([_question(sample) for sample in samples], processor)
    except ValueError as error:
        if getattr(processor, "chat_template", None) is not None:
            raise
        raise _unwritten(samples[0], error) from error


def conversation_inputs(conversations: Sequence[Sequence[Mapping[str, Any]]], processor: Any) -> dict[str, Any]:
    """Processor outputs for conversations that wait for an answer, padded on the left.

    Args:
        conversations: messages of each, in Hugging Face's form: ``role``, and ``content`` as a list of parts ``{"type":
            "text", "text": ...}`` and ``{"type": "image", "image": ...}``.
    """
    return dict(
        processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
    )


def target_ids(sample: Sample, processor: Any, tokenizer: Any, ends: Sequence[int]) -> list[int]:
    """Tokens of the first reference answer up to and including one of ``ends``; an empty list without answer.

    Raises:
        GlimpseError: if the template cannot write the question, or the answer's tokens cannot follow the prompt's.
    """
    if not sample.answers:
        return []
    turn = write_turn(sample, sample.answers[0], processor)
    ids = _tokens_after(turn.prompt, turn.reply + turn.tail, tokenizer)
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    if stop is not None:
        return ids[: stop + 1]
    return [*_tokens_after(turn.prompt, turn.reply.rstrip(), tokenizer), ends[0]]


def write_turn(sample: Sample, answer: str, processor: Any) -> Turn:
    """The sample's question with an answer, by the rules above.

    Raises:
        GlimpseError: if the template cannot write the question.
    """
    question = _question(sample)
    try:
        prompt: str = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError) as error:
        raise _unwritten(sample, error) from error
    for content in (_parts, str):  # some templates take an answer as plain text only
        try:
            marked, whole = (
                processor.apply_chat_template(
                    [*question, {"role": "assistant", "content": content(text)}], tokenize=False
                )
                for text in (MARK, answer)
            )
        except Exception:  # a template is a program and raises errors of many types
            continue
        before, found, tail = marked.rpartition(MARK)
        if not found or str(_parts(MARK)) in marked:
            continue
        if whole.startswith(prompt):
            return Turn(prompt, whole.removeprefix(prompt).removesuffix(tail), tail)
        if whole.startswith(before):
            rank_zero_warn(
                "The chat template writes another header in front of an answer than at the end of a prompt. Reference "
                "answers follow the prompt's."
            )
            return Turn(prompt, whole.removeprefix(before).removesuffix(tail), tail)
    rank_zero_warn("The chat template writes no answers. Reference answers follow the prompt as plain text.")
    return Turn(prompt, answer, "")


def _unwritten(sample: Sample, error: Exception) -> GlimpseError:
    return GlimpseError(
        f"{sample.id}: the processor's chat template cannot write this question: {error} Give the processor one that "
        "takes images: put it into the model's folder as `chat_template.jinja` (of a model on the Hub, into a copy: "
        "`hf download NAME --local-dir FOLDER`), or in Python set `backbone.processor.chat_template = ...`. Base "
        "models have none: name the instruction-tuned one."
    )


def _question(sample: Sample) -> list[dict[str, Any]]:
    """One user turn, in which each image precedes the question, in order."""
    images = [{"type": "image", "image": image} for image in sample.images]
    return [{"role": "user", "content": [*images, *_parts(sample.question)]}]


def _parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _tokens_after(prompt: str, reply: str, tokenizer: Any) -> list[int]:
    """Tokens of ``reply`` that follow those of ``prompt``.

    Raises:
        GlimpseError: if the tokens of both do not decode to ``prompt + reply``.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    start, whole = encode(prompt), encode(prompt + reply)
    if whole[: len(start)] == start:
        return whole[len(start) :]
    for lead in ("", "\n"):  # some tokenizers put a space in front of a text, but not in front of a second line
        rest = encode(lead + reply)[len(encode(lead)) :]
        if tokenizer.decode(start + rest) == tokenizer.decode(whole):
            rank_zero_warn(
                "Answers begin in the middle of a token, because of how the chat template ends a prompt. Prompts keep "
                "their tokens, and reference answers are tokenized apart."
            )
            return rest
    raise GlimpseError(
        f"No tokens of the answer {reply[:40]!r} follow the prompt's, which ends with {prompt[-20:]!r}: the tokenizer "
        "puts them into one. Change how the chat template ends a prompt (`processor.chat_template`)."
    )
