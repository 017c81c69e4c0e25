"""The body of a chat request: what is read of it, what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glimpse_lightning.serving.media import Media
from glimpse_lightning.serving.refusals import RefusedRequestError

READ = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "seed", "stop", "retention", "threshold", "user", "metadata", "store", "service_tier",
)  # fmt: skip
"""Fields that are read, or have no effect on an answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}
"""Fields of OpenAI's interface that this server does not follow, with the values that ask for nothing."""

ROLES = ("system", "developer", "user", "assistant")
_MOST_STOPS = 4


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are drawn.

    Attributes:
        temperature: 0: the likeliest token.
        top_p: share of the probability that the drawn tokens hold.
        top_k: number of tokens that are drawn from; 0: all.
        seed: seed of the draws; ``None``: another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered.

    Attributes:
        messages: the conversation in Hugging Face's form, with images decoded.
        question: text of the last message by the user, for scorers that read it.
        images: number of images.
        sampling: how tokens are drawn.
        max_new_tokens: length of the longest answer.
        stop: texts that end the answer.
        retention: share of the visual tokens to keep, of several stages one each; ``None``: the policy's budget.
        threshold: threshold of ``Threshold`` policies, likewise.
    """

    messages: list[dict[str, Any]]
    question: str
    images: int
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    retention: float | tuple[float, ...] | None = None
    threshold: float | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
        media: bounds of each image.
        max_images: images in a conversation.
        max_new_tokens: length of the longest answer, and of one that names none.
        sampling: how tokens are drawn where a request does not say.
    """

    media: Media = field(default_factory=Media)
    max_images: int = 16
    max_new_tokens: int = 1024
    sampling: Sampling = Sampling()


def read_request(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """What a body asks for; images are decoded, and where allowed fetched.

    Raises:
        RefusedRequestError: for a field that is unknown, cannot be followed or has a wrong value, by its name.
    """
    check_fields(body)
    messages = _messages(body.get("messages"), limits)
    said = [message for message in messages if message["role"] == "user"]
    parts = said[-1]["content"] if said else []
    return ChatRequest(
        messages=messages,
        question=" ".join(part["text"] for part in parts if part["type"] == "text"),
        images=sum(part["type"] == "image" for message in messages for part in message["content"]),
        sampling=_sampling(body, limits.sampling),
        max_new_tokens=_length(body, limits.max_new_tokens),
        stop=_stops(body.get("stop")),
        retention=_budget(body, "retention"),
        threshold=_budget(body, "threshold"),
    )


def check_fields(body: Mapping[str, Any]) -> None:
    """Raise where a field would have no effect, though it asks for one.

    Raises:
        RefusedRequestError: naming the field.
    """
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and not any(type(value) is type(one) and value == one for one in _alike(name, value)):
                raise RefusedRequestError(f"This server does not follow `{name}` (got {_short(value)}); leave it out.")
        elif name not in READ:
            raise RefusedRequestError(
                f"There is no field {name!r} in a request to this server; leave it out. It reads {', '.join(READ)}."
            )


def _alike(name: str, value: Any) -> list[Any]:
    """Neutral values of a field; whole numbers as floats where the value is one."""
    return [float(one) if isinstance(value, float) and type(one) is int else one for one in NEUTRAL[name]]


def _messages(messages: Any, limits: Limits) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise RefusedRequestError(f"Expected `messages` to be a list of messages, but got {_short(messages)}.")
    found: list[dict[str, Any]] = []
    images = 0
    for place, message in enumerate(messages):
        where = f"`messages[{place}]`"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            got = message.get("role") if isinstance(message, Mapping) else message
            raise RefusedRequestError(f"Expected {where} to have a role of {', '.join(ROLES)}, but got {_short(got)}.")
        if message.get("tool_calls"):
            raise RefusedRequestError(f"{where}: this server does not follow `tool_calls`; leave them out.")
        role = "system" if message["role"] == "developer" else message["role"]
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise RefusedRequestError(
                f"Expected the content of {where} to be a text or a list of parts, but got {_short(content)}."
            )
        read: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            images += isinstance(part, Mapping) and part.get("type") == "image_url"
            if images > limits.max_images:
                raise RefusedRequestError(f"Expected at most {limits.max_images} images in a request; send fewer.")
            read.append(_part(part, f"{where}, part {number}", limits.media))
        found.append({"role": role, "content": read})
    if found[-1]["role"] == "assistant":
        raise RefusedRequestError("Expected the last message to be the user's, but it is the assistant's.")
    if not any(part.get("text", "").strip() for message in found for part in message["content"]):
        raise RefusedRequestError("Expected a text in `messages`, but all of them are empty; ask a question.")
    return found


def _part(part: Any, where: str, media: Media) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        named = part.get("image_url")
        url = named.get("url") if isinstance(named, Mapping) else named
        if isinstance(url, str):
            return {"type": "image", "image": media.image(url, where)}
    raise RefusedRequestError(
        f'{where}: expected {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": {{"url": ...}}}}, '
        f"but got {_short(part)}."
    )


def _sampling(body: Mapping[str, Any], default: Sampling) -> Sampling:
    temperature = _number(body, "temperature", 0.0, 2.0)
    top_p = _number(body, "top_p", 0.0, 1.0)
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise RefusedRequestError(f"Expected `seed` to be a whole number, but got {_short(seed)}.")
    return Sampling(
        default.temperature if temperature is None else temperature,
        default.top_p if top_p is None else top_p,
        default.top_k,
        seed,
    )


def _length(body: Mapping[str, Any], most: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise RefusedRequestError(
                f"Expected `{name}` to be a whole number from 1 to {most}, this server's limit; got {_short(value)}."
            )
        return value
    return most


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(one, str) and one for one in stops)
    ):
        raise RefusedRequestError(
            f"Expected `stop` to be a text or up to {_MOST_STOPS} of them, none empty, but got {_short(value)}."
        )
    return tuple(stops)


def _budget(body: Mapping[str, Any], name: str) -> float | tuple[float, ...] | None:
    value = body.get(name)
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not values or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in values):
        raise RefusedRequestError(
            f"Expected `{name}` to be a number, or a list of one a stage, but got {_short(value)}."
        )
    return tuple(map(float, values)) if isinstance(value, list) else float(value)


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RefusedRequestError(f"Expected `{name}` from {low:g} to {high:g}, but got {_short(value)}.")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
