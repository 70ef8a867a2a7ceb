"""A child process that loads the output with stock mlx_lm or mlx_vlm and computes with it, as a user does.

Nothing that mint changes in its own process helps it there. The child imports mlx_lm while its parent works, and
answers any number of questions; it ends with its standard input, so with its parent.
A question is a line of JSON; the answer is one too, followed by the logits as float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.formats.format import Format, parse_format
from mint.run.child import Child, open_answers, questions, send


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for one folder: the logits of the loaded model, or the errors that the loader raised."""

    loads_error: str
    tokenizer_fault: str  # the model is loaded without a tokenizer or processor that does not load
    logits_error: str
    tokens: npt.NDArray[np.int32]  # (B, L) that the model finds likely
    logits: npt.NDArray[np.float32]  # (B, L, V)
    peak_rss_bytes: int


class Stock:
    """The child; a dead one is replaced at the next question."""

    def __init__(self) -> None:
        self._questions = 0
        self._start()

    def _start(self) -> None:
        self._child = Child("mint.assembly.stock_child:answer_questions")

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, folder: Path, paths: Sequence[str]) -> Callable[[], Answer]:
        """Begin to load the model in `folder` and to compute with it; the result waits for the answer.

        The weights of the modules at `paths` are streamed. The death of the process is an answer too.
        """
        return self._ask({"folder": str(folder.absolute()), "paths": list(paths)})

    def ask_dequantized(
        self,
        folder: Path,
        units: Mapping[str, tuple[tuple[int, ...], Format]],
        tokens: npt.NDArray[np.int32],
        *,
        rounding: float = 0.0,
        one_by_one: bool = False,
    ) -> Callable[[], Answer]:
        """Begin to compute `plain_logits` with these arguments; the result waits for the answer."""
        formats = {path: (shape, str(format)) for path, (shape, format) in units.items()}
        options = {"units": formats, "tokens": tokens.tolist(), "rounding": rounding, "one_by_one": one_by_one}
        return self._ask({"folder": str(folder.absolute()), **options})

    def _ask(self, question: dict[str, Any]) -> Callable[[], Answer]:
        if self._child.exit_code is not None:
            self._start()
        self._questions += 1
        self._child.ask({"number": self._questions, **question})
        return cache(partial(_wait, self._child, self._questions))


@cache
def stock() -> Stock:
    """The child of this process; call this early, and it is ready when it is needed."""
    return Stock()


def _wait(child: Child, number: int) -> Answer:
    for record in child.answers():
        shape = record.pop("shape")
        data = child.read(4 * prod(shape))
        if record.pop("number") == number and len(data) == 4 * prod(shape):  # else nobody waits for it, or it died
            tokens = np.array(record.pop("tokens"), np.int32)
            return Answer(tokens=tokens, logits=np.frombuffer(data, np.float32).reshape(shape), **record)
    message = f"the process that loads it {child.exit_message()}"
    return Answer(message, "", "", np.empty(0, np.int32), np.empty(0, np.float32), 0)


def answer_questions() -> None:
    """Answer questions from standard input until it ends: the whole life of the child."""
    answers = open_answers()
    import mlx.core as mx
    import mlx_lm  # noqa: F401, as it is, with tokenizers, while the parent works

    from mint.run.executor import CACHE_BYTES

    mx.set_cache_limit(CACHE_BYTES)
    for question in questions():
        record, logits = answer_to(question)
        send(answers, {"number": question["number"], **record}, np.ascontiguousarray(logits).tobytes())


def answer_to(question: Mapping[str, Any]) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """The fields of the answer to one question, computed in this process, and the logits."""
    from mint.core.memory import peak_rss_bytes
    from mint.model.module_tree import processor_fault, tokenizer_fault

    folder, is_stock = Path(question["folder"]), "paths" in question
    record: dict[str, Any] = {"loads_error": "", "logits_error": ""}
    record["tokenizer_fault"] = (tokenizer_fault(folder) or processor_fault(folder)) if is_stock else ""
    tokens, logits = np.array(question.get("tokens", []), np.int32), np.empty(0, np.float32)
    try:
        if is_stock:
            tokens, logits = _loaded(folder, question["paths"])
        else:
            options = {name: question[name] for name in ("rounding", "one_by_one")}
            logits = _dequantized(folder, question["units"], tokens, **options)
    except _LoadError as error:
        record["loads_error"] = str(error)
    except Exception as error:  # a model may raise anything: it is the finding
        record["logits_error"] = repr(error)
    return record | {"tokens": tokens.tolist(), "shape": logits.shape, "peak_rss_bytes": peak_rss_bytes()}, logits


class _LoadError(Exception):
    """The model does not load."""


def _loaded(folder: Path, paths: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    from mint.assembly.agreement import misread_tower, stock_logits
    from mint.model.module_tree import load_stock

    try:
        model = load_stock(folder)
    except Exception as error:  # the same
        raise _LoadError(repr(error)) from error
    if name := misread_tower(model, folder):
        raise _LoadError(f"{name} is not as it is stored")
    return stock_logits(model, folder, paths)


def _dequantized(
    folder: Path,
    names: Mapping[str, tuple[Sequence[int], str]],
    tokens: npt.NDArray[np.int32],
    *,
    rounding: float,
    one_by_one: bool,
) -> npt.NDArray[np.float32]:
    from mint.assembly.agreement import plain_logits

    units = {path: (tuple(shape), parse_format(name)) for path, (shape, name) in names.items()}
    return plain_logits(folder, units, tokens, rounding=rounding, one_by_one=one_by_one)
