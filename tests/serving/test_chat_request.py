"""What is read of a chat request, and what is refused by name."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from glimpse_lightning.serving.chat_request import Limits, Sampling, read_request
from glimpse_lightning.serving.media import Media
from glimpse_lightning.serving.refusals import RefusedRequestError

LIMITS = Limits(Media(max_pixels=10_000), max_images=2, max_new_tokens=64, sampling=Sampling(0.0, 1.0, 0))


def data_url(size: tuple[int, int] = (30, 20), kind: str = "image/png") -> str:
    content = io.BytesIO()
    Image.new("RGB", size, "teal").save(content, "PNG")
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def image(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url() if url is None else url}}


def text(said: str = "what is this") -> dict[str, Any]:
    return {"type": "text", "text": said}


def body(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts) or [image(), text()]}], **fields}


def test_parts_keep_their_order_and_roles_their_names() -> None:
    asked = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [text("first"), image(), text("then"), image()]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "and now"},
        ]
    }
    request = read_request(asked, LIMITS)
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in request.messages[1]["content"]] == ["text", "image", "text", "image"]
    assert request.messages[1]["content"][1]["image"].size == (30, 20)
    assert (request.question, request.images, request.max_new_tokens) == ("and now", 2, 64)


def test_settings_are_read() -> None:
    request = read_request(
        body(temperature=0.5, top_p=0.9, seed=3, stop="\n", max_tokens=5, retention=0.1, n=1, user="me"), LIMITS
    )
    assert request.sampling == Sampling(0.5, 0.9, 0, 3)
    assert (request.stop, request.max_new_tokens, request.retention) == (("\n",), 5, 0.1)
    assert read_request(body(threshold=[0.5, 0.4]), LIMITS).threshold == (0.5, 0.4)
    neutral = {"logprobs": False, "frequency_penalty": 0.0, "tools": None, "response_format": {"type": "text"}}
    assert read_request(body(**neutral), LIMITS).stop == ()


@pytest.mark.parametrize("kind", ["image/jpeg", "text/plain", "", "application/octet-stream;charset=x"])
def test_the_type_of_a_data_url_is_not_believed(kind: str) -> None:
    request = read_request(body(image(data_url(kind=kind)), text()), LIMITS)
    assert request.messages[0]["content"][0]["image"].size == (30, 20)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 2}, "does not follow `n` (got 2)"),
        ({"n": True}, "does not follow `n`"),
        ({"logprobs": True}, "`logprobs`"),
        ({"tools": [{"type": "function"}]}, "`tools`"),
        ({"response_format": {"type": "json_object"}}, "`response_format`"),
        ({"presence_penalty": 0.5}, "`presence_penalty`"),
        ({"temprature": 0.5}, "no field 'temprature'"),
        ({"generation_config": "{}"}, "no field 'generation_config'"),
        ({"temperature": -1}, "`temperature` from 0 to 2"),
        ({"temperature": float("nan")}, "`temperature` from 0 to 2"),
        ({"top_p": "0.5"}, "`top_p`"),
        ({"seed": 1.5}, "`seed`"),
        ({"max_tokens": 65}, "from 1 to 64, this server's limit"),
        ({"max_completion_tokens": 0}, "`max_completion_tokens`"),
        ({"stop": ["a", ""]}, "`stop`"),
        ({"stop": list("abcde")}, "`stop`"),
        ({"retention": "a tenth"}, "`retention`"),
        ({"retention": []}, "`retention`"),
        ({"messages": []}, "`messages`"),
        ({"messages": ["hello"]}, "`messages[0]` to have a role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "`messages[0]` to have a role"),
        ({"messages": [{"role": "user", "content": None}]}, "content of `messages[0]`"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [{"role": "user", "content": " "}]}, "all of them are empty"),
        ({"messages": [{"role": "user", "content": [image()]}]}, "all of them are empty"),
        ({"messages": [{"role": "user", "content": [image(), image(), image(), text()]}]}, "at most 2 images"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "part 0: expected"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]}, "part 0: expected"),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_no_meaning_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedRequestError) as refused:
        read_request({**body(), **fields}, LIMITS)
    assert said in str(refused.value)
    assert refused.value.status == 400
