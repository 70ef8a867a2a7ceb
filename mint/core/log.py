"""Logs: structlog events on stderr, for people on a terminal, JSON otherwise.

As a library mint stays quiet: nothing below a warning, unless the program has configured structlog itself.
structlog is imported with the first event: most commands have none.
"""

import logging
import sys
from typing import Any

_level = logging.WARNING


def configure_logging(*, verbose: bool) -> None:
    """Send events to stderr: warnings only, or every unit of work when `verbose`."""
    global _level
    _level = logging.DEBUG if verbose else logging.WARNING
    log.forget()


class _Log:
    """The logger of mint, configured when it is first used."""

    def __init__(self) -> None:
        self._logger: Any = None

    def forget(self) -> None:
        self._logger = None

    def __getattr__(self, method: str) -> Any:
        if getattr(logging, method.upper(), logging.ERROR) < _level and self._logger is None:
            return _ignore
        if self._logger is None:
            self._logger = _logger()
        return getattr(self._logger, method)


class _Stderr:
    """Whatever standard error is when something is written."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _ignore(*_: object, **__: object) -> None:
    """An event below the level."""


def _logger() -> Any:
    import structlog

    if structlog.is_configured():
        return structlog.get_logger("mint")
    terminal = sys.stderr.isatty()
    return structlog.wrap_logger(
        structlog.PrintLogger(_Stderr()),  # type: ignore[arg-type]
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
    )


log = _Log()
