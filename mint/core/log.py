"""Logs: structlog events on standard error, rendered for people on a terminal and as JSON otherwise.

As a library mint logs warnings only, unless the program has configured structlog: then its configuration rules.
structlog is imported with the first event: most commands have none.
"""

import logging
import sys
from typing import Any

_level = logging.WARNING


def configure_logging(*, verbose: bool) -> None:
    """Log every unit of work if `verbose`, else warnings only."""
    global _level
    _level = logging.DEBUG if verbose else logging.WARNING


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

    renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.dev.ConsoleRenderer()] if sys.stderr.isatty() else renderers),
        ],
    )


log = _Log()
