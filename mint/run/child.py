"""A child process: questions and answers are lines of JSON; bytes may follow an answer.

It blocks interrupts, so Ctrl-C in a terminal reaches the parent alone, which decides. It stays in the parent's process
group, so it ends where that is killed. The end of its standard input ends it, so it does not outlive its parent.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, BinaryIO, TextIO

_END_SECONDS = 2.0  # for a process whose input has ended


class Child(AbstractContextManager["Child"]):
    """A running child; `function` is `module:name`, called without arguments, `arguments` are its `sys.argv[1:]`.

    Lines of its standard error are copied to `stderr`; the last one is part of `exit_message`.
    """

    def __init__(
        self, function: str, *arguments: str, environment: Mapping[str, str] | None = None, stderr: TextIO | None = None
    ) -> None:
        module, _, name = function.partition(":")
        rarely = "import gc; gc.set_threshold(100_000)"  # imports leave objects for the whole run
        command = [sys.executable, "-P", "-c", f"{rarely}; from {module} import {name}; {name}()", *arguments]
        with _interrupts_blocked():
            self._process = process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        assert process.stdin and process.stdout and process.stderr
        self._input, self._output, self._last_line = process.stdin, process.stdout, ""
        self._copying = threading.Thread(target=self._copy, args=(process.stderr, stderr), daemon=True)
        self._copying.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, below 0 if it was killed; None while it runs."""
        return self._process.poll()

    def ask(self, question: Mapping[str, Any]) -> None:
        """Send a question; a dead child has no answer."""
        with suppress(BrokenPipeError):
            self._input.write(json.dumps(question).encode() + b"\n")
            self._input.flush()

    def answer(self) -> dict[str, Any] | None:
        """Wait for the next answer; None when the child ended instead."""
        line = self._output.readline()
        record: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return record

    def answers(self) -> Iterator[dict[str, Any]]:
        """All answers until the child ends."""
        return iter(self.answer, None)

    def read(self, nbytes: int) -> bytes:
        """The bytes that follow an answer."""
        return self._output.read(nbytes)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> int:
        """End its input, wait for its end, kill it where that takes long; its exit code."""
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except TimeoutExpired:
            self.kill()
        code = self._process.wait()
        self._output.close()
        self._copying.join(_END_SECONDS)  # another process may hold its standard error
        return code

    def exit_message(self) -> str:
        """Its exit code, with the last line of its standard error unless it was killed. Waits for the end."""
        code = self._process.wait()
        self._copying.join(_END_SECONDS)
        reason = f": {self._last_line}" if self._last_line and code != -signal.SIGKILL else ""
        return f"ended with code {code}{reason}"

    def _copy(self, lines: BinaryIO, target: TextIO | None) -> None:
        with lines:
            for line in lines:
                text = line.decode(errors="replace")
                self._last_line = text.strip() or self._last_line
                if target:
                    with suppress(OSError, ValueError):  # it may be closed by now
                        target.write(text)
                        target.flush()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started meanwhile never gets an interrupt, from its first instruction on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_answers() -> BinaryIO:
    """In a child: the stream of its answers. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def questions() -> Iterator[dict[str, Any]]:
    """In a child: the questions of its parent, until there are no more."""
    return map(json.loads, sys.stdin.buffer)


def send(answers: BinaryIO, record: Mapping[str, Any], data: bytes = b"") -> None:
    """In a child: send an answer, and the bytes that follow it."""
    answers.write(json.dumps(record).encode() + b"\n" + data)
    answers.flush()


def end_with_parent() -> None:
    """In a child without further questions: end it when the parent closes the input or dies."""

    def wait() -> None:
        os.read(0, 1)  # unbuffered: a thread that reads `sys.stdin` would block a normal end
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
