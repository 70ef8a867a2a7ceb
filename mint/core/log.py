"""Logs: structlog events on standard error, rendered for people on a terminal and as JSON otherwise.

As a library mint logs warnings only, unless the program has configured structlog: then its configuration rules.
structlog is imported with the first event: most commands have none.
"""

import logging
import sys
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_level, _format = logging.WARNING, ""


def configure_logging(*, level: str, format: str = "") -> None:
    """Log events of one of `LEVELS` and above, in one of `FORMATS`; by default text on a terminal, JSON otherwise."""
    global _level, _format
    _level, _format = getattr(logging, level.upper()), format


def is_verbose() -> bool:
    """True if every unit of work is logged."""
    return _level == logging.DEBUG


class _Log:
    """`log.info(event, **context)` and so on; the configuration is looked up with every event."""

    def __getattr__(self, method: str) -> Any:
        structlog: Any = sys.modules.get("structlog")
        is_configured = getattr(structlog, "is_configured", lambda: False)  # absent while another thread imports it
        if is_configured():
            return getattr(structlog.get_logger("mint"), method)
        if getattr(logging, method.upper(), logging.ERROR) < _level:
            return lambda *_, **__: None
        return getattr(_logger(), method)


def _logger() -> Any:
    import structlog

    is_text = _format == "text" or (not _format and sys.stderr.isatty())
    renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.dev.ConsoleRenderer(repr_native_str=True)] if is_text else renderers),
        ],
    )


log = _Log()
