"""Errors of a request, and their answers in OpenAI's form."""

from __future__ import annotations

from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError

BAD_REQUEST, UNAUTHORIZED, TOO_LARGE, BUSY, TIMED_OUT = 400, 401, 413, 503, 504
"""HTTP statuses of refusals: a wrong request, no valid key, a body too large, a full queue, a deadline passed."""
KINDS = {
    BAD_REQUEST: "invalid_request_error",
    UNAUTHORIZED: "authentication_error",
    TOO_LARGE: "invalid_request_error",
    BUSY: "overloaded_error",
    TIMED_OUT: "timeout_error",
}
"""Type of error in an answer, by status."""


class RefusedRequestError(GlimpseError):
    """A request that is not answered.

    Args:
        message: what was expected, what came and the remedy, for the client.
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def error_body(message: str, status: int) -> dict[str, Any]:
    """The body of an error's answer, in OpenAI's form."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
