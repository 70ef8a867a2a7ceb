"""The `mint` command in a process of its own, on a terminal of a given size or piped."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

COMMAND = [sys.executable, "-m", "mint"]


def on_terminal(*arguments: str, columns: int, **variables: str) -> list[str]:
    """The lines that a command shows on a terminal with so many columns, without their colours."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "NO_COLOR": "1", **variables}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    while part := _read(controller):
        shown += part
    os.close(controller)
    assert process.wait() == 0, shown.decode(errors="replace")
    return shown.decode().replace("\r\n", "\n").splitlines()


def piped(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A finished command whose output went to pipes."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # Linux's way to say that the other end is closed
        return b""
