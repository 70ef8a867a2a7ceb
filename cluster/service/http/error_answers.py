"""Errors of the API: a status, a code for programs, and a message for people."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from cluster.service import errors
from mint.core.errors import MintError

# status: its code, unless a more exact one is known
CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "too_slow", 409: "conflict", 413: "too_large", 415: "unsupported_media_type", 416: "range_not_satisfiable",
    422: "invalid", 429: "too_many", 500: "bug", 503: "unavailable",
}  # fmt: skip
# an error's class: its status and code; the first class that fits counts
_REFUSALS: dict[type[MintError], tuple[int, str]] = {
    errors.NotFoundError: (404, ""),
    errors.NotWatchingError: (403, ""),
    errors.ArtifactInUseError: (409, ""),
    errors.NotFetchedError: (409, "not_fetched"),
    errors.QuotaExceededError: (429, "quota"),
    errors.ServiceBusyError: (429, "busy"),
    errors.DatabaseUnavailableError: (503, ""),
    MintError: (422, "unusable"),
}


class ApiError(Exception):
    """An error as the API answers it. The message says what was found, what is needed, and what to do.

    After `retry_after` seconds the request may be repeated.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", retry_after: float = 0.0, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code or CODES[status], dict(headers)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if retry_after:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    @classmethod
    def of(cls, error: MintError) -> "ApiError":
        """The answer to an error of the service; the reason of a lost database is for its log only."""
        status, code = next(answer for kind, answer in _REFUSALS.items() if isinstance(error, kind))
        message = "the database does not answer; come back" if status == 503 else str(error)
        return cls(status, message, code=code, retry_after=getattr(error, "retry_after", 0.0))

    @property
    def record(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": str(self)}}

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.record, self.status, self.headers)


# field: the values that its pattern allows, in words
_NEEDED = {
    "budgets": "a size (24GB, 16.5GiB), bits per weight (4.5bpw), a share of the source (0.3x), min, max, or the name "
    "of a device (GET /v1/devices)",
    "formats": "formats such as 3,4,8@64 or mxfp4,4/32",
    "lock": "PATTERN=FORMAT, such as *.down_proj=6/64",
    "ignore_floors": "patterns of units, such as *.gate",
    "context": "a number of tokens, such as 8192, 32k or 1M",
}
_NEEDED["budget"] = _NEEDED["budgets"]
_SHOWN = 40  # characters of a wrong value
# an error of pydantic: what is needed, with the limits of the field
_KINDS = {
    "missing": "a value",
    "extra_forbidden": "no field of this name",
    "literal_error": "{expected}",
    "string_type": "a text",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "too_long": "at most {max_length} entries",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def describe_invalid(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as found and needed, in the words of the API."""
    location = [str(part) for part in error["loc"]]
    of_pattern = next((_NEEDED[part] for part in reversed(location) if part in _NEEDED), "")
    needed = of_pattern if error["type"] == "string_pattern_mismatch" and of_pattern else _KINDS.get(error["type"], "")
    if not needed:
        needed = f"what /openapi.json describes ({error['type'].replace('_', ' ')})"
    value = error.get("input")
    if error["type"] == "json_invalid":
        return "the body: needed JSON"
    found = f"found {repr(value)[:_SHOWN]}; " if isinstance(value, str | int | float) else ""
    name = ".".join(location[1:]) or "the request"
    return f"{name}: {found}needed {needed.format(**error.get('ctx', {}))}"
