"""A process of its own that does what a user of the output does: load it with stock mlx_lm and compute with it.

Nothing that mint did to its own process can help it there. The process is started once, imports mlx_lm while the
caller works on, and answers any number of questions; it ends when its standard input does, however its parent ends.
A question is a line of JSON; the answer is one too, followed by the logits as float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mint.run.child import Child, open_answers, questions, send


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for one folder: the logits that mlx_lm computed, or the errors that it raised."""

    loads_error: str
    has_tokenizer: bool
    logits_error: str
    logits: npt.NDArray[np.float32]
    peak_rss_bytes: int


class Stock:
    """The process, and how many questions it was asked."""

    def __init__(self) -> None:
        self._asked = 0
        self._child = Child("mint.assembly.stock_child:answer_questions")

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.exit_code is None

    def ask(self, folder: Path, paths: Sequence[str]) -> Callable[[], Answer]:
        """Begin to load the model in `folder` and to compute with it, and return what waits for the answer.

        The weights of the modules at `paths` are streamed. A process that dies is an answer too.
        """
        self._asked += 1
        self._child.ask({"number": self._asked, "folder": str(folder.absolute()), "paths": list(paths)})
        return cache(partial(self._answer, self._asked))

    def _answer(self, number: int) -> Answer:
        for record in self._child.answers():
            shape = record.pop("shape")
            data = self._child.read(4 * prod(shape))
            if record.pop("number") == number and len(data) == 4 * prod(shape):  # else nobody waited, or it died
                return Answer(logits=np.frombuffer(data, np.float32).reshape(shape), **record)
        message = f"the process that loads it {self._child.exit_message()}"
        return Answer(message, False, "", np.empty(0, np.float32), 0)


_running: list[Stock] = []


def stock() -> Stock:
    """The process of this one, started when first asked for: ask early, and it is ready when it is needed."""
    if not _running or not _running[0].alive:
        _running[:] = [Stock()]
    return _running[0]


def answer_questions() -> None:
    """Answer what comes on standard input until it ends: the whole life of the process."""
    answers = open_answers()
    from mint.assembly.agreement import stock_logits
    from mint.core.memory import peak_rss_bytes
    from mint.model.module_tree import has_tokenizer, load_as_users_do

    for question in questions():
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
        send(answers, record, np.ascontiguousarray(logits).tobytes())
