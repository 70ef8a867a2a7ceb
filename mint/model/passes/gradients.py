"""Gradients of the loss at the outputs of units, by one pass back through the model per block of sequences.

The loss is that of the next tokens of a text that the model wrote, so the second moments of its gradients are the
Fisher information, the curvature of the KL divergence from the model itself. The whole model is in memory meanwhile.
"""

# B sequences, L tokens, T outputs of all calls, R values of an output

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from mint.core.errors import MintError
from mint.kernels.compensate import in_range
from mint.kernels.storage import numpy_view
from mint.model.hooks import hook, unhooked_after
from mint.model.passes.logits import logits_of

BYTES = 2  # of a value in the file
_FLOOR = np.float32(1e-3)  # of the mean square of a block: outputs that hardly matter stay so
_Outputs = dict[str, list[mx.array]]  # of each call, by path


class NoGradientError(MintError):
    """The model calls a function that has no gradient."""


class Gradients:
    """Gradients (T, R) by the path of a module, each scaled to a mean square of about 1, in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self._parts: dict[str, list[tuple[int, tuple[int, int]]]] = {}  # offset and shape

    def add(self, path: str, rows: npt.NDArray[np.float32]) -> None:
        """Append rows (T, R) of gradients, in any unit, to those of `path`."""
        rows = in_range(rows)
        squares = np.square(rows).mean(axis=1, keepdims=True)
        if squares.any():
            rows = rows / np.sqrt(squares + _FLOOR * squares.mean())
        self._parts.setdefault(path, []).append((self._end, rows.shape))
        self._file.seek(self._end)
        self._file.write(rows.astype(np.float16).data)
        self._end += BYTES * rows.size

    def __contains__(self, path: str) -> bool:
        return path in self._parts

    def of(self, path: str) -> npt.NDArray[np.float32] | None:
        """All rows (T, R) of a module; None for one that has none."""
        return np.concatenate([self._read(*part) for part in self._parts[path]]) if path in self._parts else None

    def _read(self, offset: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        self._file.seek(offset)
        return np.fromfile(self._file, np.float16, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def output_gradients(
    model: Module, paths: Collection[str], blocks: Iterable[npt.NDArray[np.int32]], file: BinaryIO
) -> Gradients:
    """The gradients of all tokens (B, L) of `blocks`, at the outputs of the modules at `paths`.

    Raises `NoGradientError` for a model that has none.
    """
    modules = {path: module for path, module in model.named_modules() if path in paths}
    gradients = Gradients(file)
    mx.eval(model.parameters())  # reading inside of a GPU's work trips Metal's watchdog
    with naming_no_gradient():
        for block in blocks:
            for path, calls in _of_block(model, modules, mx.array(block)).items():
                for rows in calls:
                    gradients.add(path, numpy_view(rows.astype(mx.float32)).reshape(-1, rows.shape[-1]))
    return gradients


@contextmanager
def naming_no_gradient() -> Iterator[None]:
    """Raise `NoGradientError` where MLX finds a function without one."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "vjp" not in str(error).lower():
            raise
        raise NoGradientError(f"the model has no gradient ({error})") from error


def _of_block(model: Module, modules: Mapping[str, Module], tokens: mx.array) -> _Outputs:
    """The gradients at every call of the modules: those of zeros that are added to its output."""
    zeros: _Outputs = {path: [] for path in modules}
    with unhooked_after(modules.values()):
        for path, module in modules.items():
            hook(module, partial(_note, zeros[path]), ("__call__",))
        logits_of(model, tokens)  # lazy: only the shapes are asked for
    zeros = {path: calls for path, calls in zeros.items() if calls}

    def loss(added: _Outputs) -> mx.array:
        with unhooked_after(modules.values()):
            for path, calls in added.items():
                hook(modules[path], partial(_add, iter(calls)), ("__call__",))
            logits = logits_of(model, tokens)[:, :-1].astype(mx.float32)
        chosen = mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        return (mx.logsumexp(logits, axis=-1) - chosen).sum()

    answer: _Outputs = mx.grad(loss)(zeros)
    mx.eval(answer)
    return answer


def _note(zeros: list[mx.array], method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
    output = method(module, *arguments, **options)
    if _is_of_rows(output, module):
        zeros.append(mx.zeros(output.shape, output.dtype))
    return output


def _add(added: Iterator[mx.array], method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
    output = method(module, *arguments, **options)
    return output + next(added) if _is_of_rows(output, module) else output


def _is_of_rows(output: Any, module: Module) -> bool:
    """True for an output (..., R) of a module with a weight (..., R, C)."""
    return isinstance(output, mx.array) and output.shape[-1:] == module["weight"].shape[-2:-1]
