"""Errors of the API: a status, a code for programs, and a message for people."""

from collections.abc import Mapping
from typing import Any

# status: its code, unless a more exact one is known
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


class ApiError(Exception):
    """An error as the API answers it. The message says what was found, what is needed, and what to do."""

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


# field: the values that its pattern allows, in words
_NEEDED = {
    "budgets": "a size (24GB, 16.5GiB), bits per weight (4.5bpw), a share of the source (0.3x), min, max, or the name "
    "of a device (GET /v1/devices)",
    "formats": "formats such as 3,4,8@64 or mxfp4,4/32",
    "lock": "PATTERN=FORMAT, such as *.down_proj=6/64",
    "context": "a number of tokens, such as 8192, 32k or 1M",
}
_NEEDED["budget"] = _NEEDED["budgets"]
_SHOWN = 40  # characters of a wrong value


def describe_invalid(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as found and needed; a pattern is described in words if there are any."""
    location = [str(part) for part in error["loc"]]
    needed = next((_NEEDED[part] for part in reversed(location) if part in _NEEDED), "")
    if error["type"] != "string_pattern_mismatch" or not needed:
        return f"{'.'.join(location)}: {error['msg']}"
    return f"{'.'.join(location[1:])}: found {str(error['input'])[:_SHOWN]!r}; needed {needed}"


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says after how many seconds to repeat the request."""
    return {"Retry-After": str(max(1, int(seconds + 0.999)))}
