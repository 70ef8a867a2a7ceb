"""Ctrl-C at many moments: one line, exit code 130, and the same command goes on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.worlds.terminals import COMMAND

MOMENTS = range(10)  # lines of progress before the interrupt


def _interrupted(arguments: list[str], moment: int, **variables: str) -> tuple[int, str, str]:
    """Interrupt a command and its children, as a terminal does, after so many lines of progress; None is the end."""
    command = [*COMMAND, *arguments, "--progress", "json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert process.stderr
    before = [process.stderr.readline() for _ in range(moment + 1)]
    os.killpg(process.pid, signal.SIGINT)
    output, rest = process.communicate()
    return process.returncode, output, "".join(before) + rest


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["quantize", str(llama), "--budget", "400kB", "--output", str(output), "--json"]
    codes = []
    for moment in MOMENTS:
        code, answer, shown = _interrupted(arguments, moment)
        codes.append(code)
        assert "Traceback" not in shown
        assert code in (0, 130)
        if code == 130:
            (line,) = [line for line in shown.splitlines() if line.startswith("mint: ")]
            assert "interrupted" in line
            assert f"to resume: mint quantize {llama}" in line
            assert json.loads(answer)["exit_code"] == 130
    assert codes.count(130) >= 3, codes
    assert subprocess.run([*COMMAND, *arguments], capture_output=True).returncode == 0
    assert (output / "mint.json").exists()


def test_an_interrupt_while_kernels_are_compiled_ends_their_process_without_a_word(llama: Path, tmp_path: Path) -> None:
    arguments = ["analyze", str(llama), "--output", str(tmp_path / "a.mint")]
    code, _, shown = _interrupted(arguments, 1, MINT_CACHE=str(tmp_path / "cache"), MINT_KERNELS=str(tmp_path / "k"))
    assert code == 130
    assert '"compile"' in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "a.mint").exists()


@pytest.mark.parametrize("arguments", [["inspect", "m"], ["--json", "devices"]])
def test_the_line_of_a_command_that_keeps_nothing(arguments: list[str]) -> None:
    from mint.cli.terminal.interruption import interruption

    assert interruption(arguments) == f"interrupted; nothing was changed. Run again: mint {' '.join(arguments)}"
