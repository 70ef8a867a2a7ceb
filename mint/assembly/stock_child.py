"""A process of its own that does what a user of the output does: load it with stock mlx_lm and compute with it.

Nothing that mint did to its own process can help it there. The process is started once, imports mlx_lm while the
caller works on, and answers any number of questions; it ends when its standard input does, however its parent ends.
A question is a line of JSON; the answer is one too, followed by the logits as float32.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a folder: whether mlx_lm loaded it and computed with it, else what it raised."""

    loads_error: str
    has_tokenizer: bool
    logits_error: str
    logits: npt.NDArray[np.float32]
    peak_rss_bytes: int


class Stock:
    """The process, and how many questions it was asked."""

    def __init__(self) -> None:
        self._asked = 0
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        code = "from mint.assembly.stock_child import answer_questions; answer_questions()"
        command = [sys.executable, "-P", "-c", code]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, folder: Path, paths: Sequence[str]) -> Callable[[], Answer]:
        """Begin to load the model in `folder` and to compute with it, and return what waits for the answer.

        The weights of the modules at `paths` are streamed. A process that dies is an answer too.
        """
        assert self._process.stdin
        self._asked += 1
        question = {"number": self._asked, "folder": str(folder.absolute()), "paths": list(paths)}
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; the answer tells how
        return cache(partial(self._answer, self._asked))

    def _answer(self, number: int) -> Answer:
        assert self._process.stdout
        while line := self._process.stdout.readline():
            record: dict[str, Any] = json.loads(line)
            shape = record.pop("shape")
            text = self._process.stdout.read(4 * prod(shape))
            if record.pop("number") == number:  # else nobody waited for it
                return Answer(logits=np.frombuffer(text, np.float32).reshape(shape), **record)
        return Answer(self._epitaph(), False, "", np.empty(0, np.float32), 0)

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"the process that loads it ended with code {code}" + (f": {said[-1]}" if said else "")


_running: list[Stock] = []


def stock() -> Stock:
    """The process of this one, started when first asked for: ask early, and it is ready when it is needed."""
    if not _running or not _running[0].alive:
        _running[:] = [Stock()]
    return _running[0]


def answer_questions() -> None:
    """Answer what comes on standard input until it ends: the whole life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts both; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    from mint.assembly.agreement import stock_logits
    from mint.core.memory import peak_rss_bytes
    from mint.model.module_tree import has_tokenizer, load_as_users_do

    for line in sys.stdin.buffer:
        question = json.loads(line)
        folder = Path(question["folder"])
        record = {"number": question["number"], "loads_error": "", "logits_error": ""}
        record["has_tokenizer"] = has_tokenizer(folder)
        logits, model = np.empty(0, np.float32), None
        try:
            model = load_as_users_do(folder)
        except Exception as error:  # whatever mlx_lm raises is the finding
            record["loads_error"] = repr(error)
        try:
            if model:
                logits = stock_logits(model, folder, question["paths"])
        except Exception as error:  # the same
            record["logits_error"] = repr(error)
        del model
        record |= {"shape": logits.shape, "peak_rss_bytes": peak_rss_bytes()}
        answers.write(json.dumps(record).encode() + b"\n" + np.ascontiguousarray(logits).tobytes())
        answers.flush()
