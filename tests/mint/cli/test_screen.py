"""Progress bars on a terminal."""

import pytest

from mint.cli.terminal.screen import Screen
from mint.core.progress import Progress, Share


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)


def _shown(capsys: pytest.CaptureFixture[str], *steps: Progress) -> list[str]:
    """The lines on the terminal after all steps."""
    with Screen(as_json=False) as screen:
        for step in steps:
            screen.on_progress(step)
        capsys.readouterr()
    drawn = capsys.readouterr().err.rpartition("\x1b[2K")[2]  # the last redraw begins at the last cleared line
    return [line for line in drawn.splitlines() if line.strip("\x1b[?25hlGKm ")]


TWO = (Share("alpha", 30_000_000, 5_000_000), Share("beta", 10_000_000, 0))


@pytest.mark.usefixtures("_terminal")
def test_several_nodes_have_a_line_each_below_their_stage(capsys: pytest.CaptureFixture[str]) -> None:
    stage, alpha, beta = _shown(capsys, Progress("analyze", 40_000_000, 90_000_000, "x.q_proj", TWO))
    assert "analyze" in stage
    assert "40 MB of 90 MB" in stage
    assert "alpha" in alpha
    assert "30 MB" in alpha
    assert "5 MB/s" in alpha
    assert "beta" in beta
    assert "10 MB" in beta
    assert "/s" not in beta


@pytest.mark.usefixtures("_terminal")
def test_a_single_node_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _shown(capsys, Progress("analyze", 4, 9, "x", TWO[:1]))
    assert not any("alpha" in line for line in shown)


@pytest.mark.usefixtures("_terminal")
def test_the_next_stage_removes_the_nodes_of_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _shown(capsys, Progress("analyze", 9, 9, "", TWO), Progress("assemble", 0, 9, ""))
    assert any("assemble" in line for line in shown)
    assert not any("alpha" in line or "beta" in line for line in shown)
