"""Turns the exceptions of a package's model classes into errors that name the model type and the key at fault.

A class may raise anything for a config or for tensors that it does not expect: it checks nothing.
"""

import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mint.core.errors import MintError

_MAX_TEXT = 300
_MISFITS = re.compile(r"(?:Received|Missing) (\d+) parameters|there is no \S*lm_head")  # of `load_weights`, and a head


@contextmanager
def explained(fault: str, remedy: str, config: dict[str, Any]) -> Iterator[None]:
    """Raise a `MintError` for any exception: the fault, the exception, the keys of the config behind it, the remedy."""
    try:
        yield
    except MintError:
        raise
    except (Exception, SystemExit) as error:
        raise MintError(f"{fault}: {_summary(error)}{_keys(error, config)}; {remedy}") from error


def misfits(error: BaseException) -> float:
    """The number of parameters that an error about weights counts; infinite for other errors."""
    match = _MISFITS.search(str(error))
    return int(match[1] or 1) if match else math.inf


def _summary(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_MAX_TEXT]
    if isinstance(error, TypeError) and "missing" in text and (names := re.findall(r"'(\w+)'", text)):
        return f"config.json lacks {', '.join(names)}"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}".strip()


def _keys(error: BaseException, config: dict[str, Any]) -> str:
    """The keys of the config that the failing line of the class mentions, with their values."""
    parts = {"": config, **{f"{key}.": part for key, part in config.items() if isinstance(part, dict)}}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        words = set(re.findall(r"\w+", frame.line or "")) if "models" in frame.filename else set()
        named = [f"{prefix}{key}={value!r:.60}" for prefix, part in parts.items() for key, value in part.items()
                 if key in words and not isinstance(value, dict)]  # fmt: skip
        if named:
            return f" (config.json: {', '.join(named[:4])})"
    return ""
