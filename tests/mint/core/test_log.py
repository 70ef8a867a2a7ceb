"""Logs: the level, the context, tracebacks, and the configuration of the program around mint."""

import json
from collections.abc import Iterator

import pytest
import structlog

from mint.core.log import configure_logging, log


@pytest.fixture(autouse=True)
def _quiet_again() -> Iterator[None]:
    yield
    configure_logging(level="warning")
    structlog.reset_defaults()


def test_a_library_logs_warnings_only_and_a_verbose_command_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose, events in ((False, ["model.lost"]), (True, ["model.opened", "model.lost"])):
        configure_logging(level="debug" if verbose else "warning")
        log.debug("model.opened")
        log.warning("model.lost")
        out, err = capsys.readouterr()
        assert [json.loads(line)["event"] for line in err.splitlines()] == events
        assert out == ""


def test_the_format_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="error", format="text")
    log.warning("model.opened")
    log.error("model.lost", reason="gone")
    err = capsys.readouterr().err
    assert "model.lost" in err and "model.opened" not in err
    assert not err.startswith("{")


def test_bound_context_is_in_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    with structlog.contextvars.bound_contextvars(job="0123", model="llama"):
        log.warning("lease.lost", reason="cancelled")
    record = json.loads(capsys.readouterr().err)
    assert (record["job"], record["model"], record["reason"], record["level"]) == (
        "0123", "llama", "cancelled", "warning",
    )  # fmt: skip


def test_a_bug_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.error("request.failed", exc_info=True)
    assert "ValueError: broken" in json.loads(capsys.readouterr().err)["exception"]


def test_a_program_that_configured_structlog_gets_every_event() -> None:
    events: list[structlog.typing.EventDict] = []

    def collect(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        events.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[collect])
    log.debug("unit.measured", nbytes=1)
    assert events == [{"event": "unit.measured", "nbytes": 1}]
