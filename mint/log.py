"""Logs: structlog events on stderr, for people on a terminal, JSON otherwise.

As a library mint stays quiet: nothing below a warning, unless the program has configured structlog itself.
"""

import logging
import sys

import structlog

log = structlog.get_logger("mint")


def configure_logging(*, verbose: bool) -> None:
    """Send events to stderr: warnings only, or every unit of work when `verbose`."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if not structlog.is_configured():
    configure_logging(verbose=False)
