"""Every error that the API answers with: a status, a code for programs, and a message for people."""

from collections.abc import Mapping
from typing import Any

# status: the code where nothing more exact is known
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "invalid",
    429: "too_many",
    500: "bug",
    503: "unavailable",
}


class Refusal(Exception):  # noqa: N818, an answer like any other
    """An answer that is an error. The message says what was found, what is needed, and what to do."""

    def __init__(self, status: int, message: str, *, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or CODES[status]
        self.headers = dict(headers or {})

    @property
    def record(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come back."""
    return {"Retry-After": str(max(1, int(seconds + 0.999)))}
