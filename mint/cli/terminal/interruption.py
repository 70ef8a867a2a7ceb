"""The one line after Ctrl-C: the progress, the work that is kept, and the command that resumes."""

import shlex
from collections.abc import Sequence

from mint.cli.terminal.meter import Meter

# by command: the effect of an interrupt; the same command resumes where there is something to resume
_KEPT = {
    "quantize": "finished units are kept",
    "analyze": "finished units are kept",
    "probe": "finished probes are kept",
    "assemble": "finished units are kept",
    "download": "finished bytes are kept",
    "submit": "the service continues its jobs (mint jobs)",
    "jobs": "the service continues its jobs",
}


class Interrupted(Exception):  # noqa: N818, no error of anybody
    """A command was interrupted; typer would turn a KeyboardInterrupt into a bare exit code."""

    def __init__(self, meter: Meter) -> None:
        self.stage = f"{meter.step.stage}, {meter.count}" if meter.count else ""
        super().__init__(self.stage)


def interruption(arguments: Sequence[str], stage: str = "") -> str:
    """The line for an interrupted command line, at this stage."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    kept = _KEPT.get(command, "nothing was changed")
    at = f" at {stage}" if stage else ""
    again = "to resume" if command in _KEPT else "again"
    return f"interrupted{at}; {kept}. Run {again}: {shlex.join(['mint', *arguments])}"
