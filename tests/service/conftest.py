"""No token or ticket of a test of the service stands in what the service logs: each test fails that finds one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SECRET = re.compile(r"(?:mint_|ticket=)[\w-]{43}(?![\w-])")  # of `Tokens` and `Tickets`
_LOGS = ("*.log*", "audit*")


def secrets_in(text: str) -> list[str]:
    """The tokens and tickets in a text."""
    return SECRET.findall(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # pytest sends the report
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if call.when == "teardown" and (leaks := _leaks(item, report)):
        report.outcome = "failed"
        report.longrepr = f"secrets in logs: {leaks}"
    return report  # type: ignore[return-value]


def _leaks(item: pytest.Item, report: pytest.TestReport) -> list[str]:
    """The titles of the captured texts, and the log files below the test's folder, that have a secret."""
    titles = [title for title, text in report.sections if "stdout" not in title and secrets_in(text)]
    folder: Path | None = getattr(item, "funcargs", {}).get("tmp_path")
    logs = [path for pattern in _LOGS for path in (folder.rglob(pattern) if folder and folder.is_dir() else ())]
    return titles + [str(path) for path in logs if path.is_file() and secrets_in(path.read_text(errors="replace"))]
