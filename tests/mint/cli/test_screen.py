"""Progress bars on a terminal, and the words of progress."""

import re
from io import StringIO

import pytest
from rich.console import Console

from mint.cli.terminal.bars import Bars
from mint.cli.terminal.lines import PlainLines
from mint.cli.terminal.meter import Meter
from mint.core.progress import Progress, Share


def _shown(*steps: Progress, columns: int = 120) -> list[str]:
    """The lines on the terminal after all steps."""
    meter, file = Meter(), StringIO()
    bars = Bars(meter, Console(file=file, force_terminal=True, width=columns, color_system=None))
    bars.start()
    for step in steps:
        meter.update(step)
        bars.show()
    bars.stop()
    frames = [frame for frame in re.split(r"(?:\x1b\[(?:1A|2K|\?25[hl])|\r)+", file.getvalue()) if frame.strip()]
    return [line for line in frames[-1].splitlines() if line.strip()]


TWO = (Share("alpha", 30_000_000, 5_000_000), Share("beta", 10_000_000, 0))


def test_several_nodes_have_a_line_each_below_their_stage() -> None:
    stage, alpha, beta = _shown(Progress("analyze", 40_000_000, 90_000_000, "x.q_proj", TWO))
    assert "analyze" in stage
    assert "40 MB of 90 MB" in stage
    assert "alpha" in alpha
    assert "30 MB" in alpha
    assert "5 MB/s" in alpha
    assert "beta" in beta
    assert "10 MB" in beta
    assert "/s" not in beta


def test_a_single_node_has_no_line() -> None:
    shown = _shown(Progress("analyze", 4, 9, "x", TWO[:1]))
    assert not any("alpha" in line for line in shown)


def test_the_next_stage_removes_the_nodes_of_the_last() -> None:
    shown = _shown(Progress("analyze", 9, 9, "", TWO), Progress("assemble", 0, 9, ""))
    assert any("assemble" in line for line in shown)
    assert not any("alpha" in line or "beta" in line for line in shown)


def test_a_bar_fits_80_columns() -> None:
    steps = (
        Progress("analyze", 0, 325_600_000, ""),
        Progress("analyze", 64_360_000, 325_600_000, "model.layers.0.mlp"),
    )
    (line,) = _shown(*steps, columns=80)
    assert "64.36 MB of 325.6 MB" in line
    assert len(line.rstrip()) <= 80


def test_rate_and_rest_are_of_this_run() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    assert meter.line == "starting: 0:00 so far"
    meter.update(Progress("analyze", 76_000_000, 326_000_000, ""))  # an earlier run did that much
    now[0] = 10.0
    meter.update(Progress("analyze", 126_000_000, 326_000_000, ""))
    assert meter.line == "analyze: 126 MB of 326 MB, 5 MB/s, 0:40 left"
    meter.update(Progress("verify", 0, 8, "files"))
    assert meter.line == "verify: 0 of 8, 0:00 so far"
    meter.update(Progress("compile", 0, 1, "kernels, once"))
    now[0] = 13.0
    assert meter.line == "compiling the kernels of this rounding, for its first run only: 0:03 so far"


def test_the_next_pass_of_a_stage_starts_the_clock_again() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    meter.update(Progress("compare", 0, 16, ""))
    now[0] = 141.0
    meter.update(Progress("compare", 16, 16, "first"))
    assert meter.is_finished
    meter.update(Progress("compare", 0, 16, ""))
    assert meter.line == "compare: 0 of 16, 0:00 so far"
    now[0] = 171.0
    meter.update(Progress("compare", 5, 16, "second"))
    assert meter.line == "compare: 5 of 16, 1:06 left"


def test_a_stage_that_exceeds_its_forecast_says_so_once() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    meter.expect({"analyze": 3.0, "assemble": 124.0})
    meter.update(Progress("assemble", 0, 326, ""))
    now[0] = 130.0
    meter.update(Progress("assemble", 200, 326, ""))
    assert meter.overrun() == ""  # a forecast is not that exact
    now[0] = 160.0
    meter.update(Progress("assemble", 210, 326, ""))
    assert meter.overrun().startswith("assemble: 2:40 so far, the forecast was 2:04: this machine")
    assert meter.overrun() == ""
    meter.update(Progress("verify", 0, 8, ""))
    now[0] = 999.0
    assert meter.overrun() == ""  # nothing was forecast


def test_the_last_line_of_a_stage_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    lines = PlainLines(meter, seconds=0.01)
    meter.update(Progress("compare", 16, 16, "first"))
    lines.start()
    text = ""
    while "verify" not in text or text.count("verify") < 3:
        text += capsys.readouterr().err
        if "16 of 16" in text:
            meter.update(Progress("verify", 0, 8, ""))
    lines.stop()
    assert text.count("16 of 16") == 1  # unfinished stages go on with their clock
