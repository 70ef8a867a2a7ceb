"""Runs `mint` commands in forked children, cheaply: imports and compiled kernels are loaded once.

A child calls `mint.cli.main.run_command` and ends. One thing differs from a process of its own: the output is loaded
by stock mlx_lm within the child, not in a grandchild that takes two seconds to start. MLX does not survive a fork once
it has computed, so this process never lets it.
"""

import contextlib
import gc
import importlib
import io
import os
import pkgutil
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

import mint
from mint.assembly import stock_child
from mint.cli.main import run_command
from mint.core.progress import ignore
from mint.formats.rounding import ROUNDINGS
from mint.kernels.ready import ready_kernels
from mint.kernels.warmup import FEATURES, MEASURE, WRITE, compile_all, kernel_sets
from tools.attack import shim
from tools.attack.hub import knowing

HUB = "HF_ENDPOINT"  # the variable with the address of the hub
TIMEOUT = -signal.SIGALRM  # the exit code of a run that did not end
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of a run (below 0: the signal), its operations, those that were spoiled, and what it printed."""

    code: int
    operations: int
    hits: int
    printed: str


def warm_up() -> None:
    """Import all of mint, and compile or load its kernels, before the first fork."""
    for module in pkgutil.walk_packages(mint.__path__, "mint."):
        if not module.name.endswith("__main__"):  # which runs the command line
            importlib.import_module(module.name)
    for name in ("mlx_lm.models.llama", "mlx_lm.models.qwen3_moe", "matplotlib.pyplot"):
        importlib.import_module(name)
    for name, rounding in ROUNDINGS.items():
        ready_kernels(name, ignore, (MEASURE, WRITE, FEATURES))
        for kernels in kernel_sets(MEASURE, rounding):  # those that write compute with MLX
            compile_all(kernels)
    with contextlib.redirect_stdout(io.StringIO()):
        run_command(["quantize", "--help"])  # imports more
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of it
    gc.set_threshold(100_000)  # as the command does
    setattr(stock_child.Stock, "_start", lambda self: None)  # noqa: B010, a method of a class of mint
    setattr(stock_child.Stock, "_ask", _answer_here)  # noqa: B010


def _answer_here(stock: stock_child.Stock, question: dict[str, Any]) -> Callable[[], stock_child.Answer]:
    record, logits = stock_child.answer_to(question)
    del record["shape"]
    tokens = np.array(record.pop("tokens"), np.int32)
    answer = stock_child.Answer(tokens=tokens, logits=np.asarray(logits, np.float32), **record)
    return lambda: answer


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    spoil: shim.Spoil | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Run `mint ARGUMENTS` in `folder`, with an operation spoiled, or killed after some seconds."""
    with TemporaryFile() as printed, TemporaryFile() as counts:
        pid = os.fork()
        if not pid:
            _be_command(arguments, folder, environment, spoil, printed.fileno(), counts.fileno())
        code = _wait(pid, seconds)
        printed.seek(0)
        counts.seek(0)
        operations, hits = (int(count) for count in (counts.read() or b"0 0").split())
        return Outcome(code, operations, hits, printed.read().decode(errors="replace"))


def _be_command(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    spoil: shim.Spoil | None,
    printed: int,
    counts: int,
) -> None:
    code = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.environ.update(environment)
        if spoil:
            shim.arm(spoil)
        with knowing(hub, folder / "hub") if (hub := environment.get(HUB)) else contextlib.nullcontext():
            code = run_command(list(arguments))
        if spoil:
            os.write(counts, b"%d %d" % (shim.operations(), shim.hits()))
    finally:
        os._exit(code)


def _wait(pid: int, seconds: float | None) -> int:
    """Wait for a child and return its exit code; kill it after `seconds`, or when it does not end."""
    descriptor = os.pidfd_open(pid)
    try:
        has_ended, _, _ = select.select([descriptor], [], [], _SECONDS if seconds is None else seconds)
    finally:
        os.close(descriptor)
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if has_ended or seconds is not None else TIMEOUT
