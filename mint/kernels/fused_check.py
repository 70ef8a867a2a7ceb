"""Decides on this machine where affine formats are measured: fused kernels, MLX operations, or the cores of the CPU.

The fused kernels are used only after they agreed with MLX's CPU code here. Both answers are kept for each chip, version
and text of the kernels.
"""

# S slices (experts), R rows, C columns

import json
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np

from mint.core.cache import keep, kernel_folder, recall
from mint.core.version import __version__
from mint.formats.format import AFFINE
from mint.formats.rounding import ROUNDINGS
from mint.kernels import oracle
from mint.kernels.fused import FusedKernels
from mint.kernels.fused_source import measure_kernel, pack_kernel
from mint.kernels.storage import DTYPE_NAMES, raw
from mint.kernels.warmup import MEASURE, begin, is_ready, kernel_sets

_SHAPE = (2, 24, 640)
_TOLERANCE = 1e-5  # of sums of float32 squares
_CONTEST = 4 << 20  # weights of which both devices measure the errors


def fault_of(fused: FusedKernels, chip: str) -> str:
    """Empty where the fused kernels agree with MLX's CPU code on this chip; else the first difference or error."""
    return str(remembered("fault", _text_of(fused), chip, lambda: _fault(fused)))


def cpu_is_faster(fused: FusedKernels, chip: str, weight: mx.array) -> bool | None:
    """True where the CPU's cores measure (S, R, C) weights faster than the fused kernels, with equal results.

    None where the weights are too few, or the CPU's kernels are not compiled yet; their compilation begins then.
    """
    if weight.size < _CONTEST:
        return None
    missing = [kernels for kernels in kernel_sets(MEASURE, ROUNDINGS["nearest"]) if not is_ready(kernels)]
    for kernels in missing:
        begin(kernels)
    return (
        None if missing else bool(remembered("cpu is faster", _text_of(fused), chip, lambda: _cpu_wins(fused, weight)))
    )


def _text_of(fused: FusedKernels) -> str:
    return repr((measure_kernel(fused.dialect), pack_kernel(fused.dialect)))


def remembered(question: str, text: str, chip: str, answer: Callable[[], str | bool]) -> str | bool:
    """The answer of this chip to a question about kernels of this text: from the cache, else asked and kept."""
    key = json.dumps([question, chip, __version__, version("mlx"), text])
    path = kernel_folder() / f"fused-{sha256(key.encode()).hexdigest()[:16]}.json"
    result = recall(path, json.loads)
    if isinstance(result, str | bool):
        return result
    answered = answer()
    with suppress(OSError):  # no folder can keep it: every process asks again
        keep(path, json.dumps(answered).encode())
    return answered


def _fault(fused: FusedKernels) -> str:
    for dtype, name in DTYPE_NAMES.items():
        weight = _weights().astype(dtype)
        mx.eval(weight)
        with mx.stream(mx.cpu):
            expected = oracle.errors(weight, AFFINE).squared
            parts = [list(map(_bytes, oracle.pack(weight, format))) for format in AFFINE]
        try:
            if not np.allclose(fused.squared(weight, AFFINE), expected, rtol=_TOLERANCE, atol=0):
                return f"other errors of {name} weights"
            for format, stored in zip(AFFINE, parts, strict=True):
                if list(map(_bytes, fused.pack(weight, format))) != stored:
                    return f"other bytes of {name} weights in {format}"
        except (RuntimeError, ValueError) as error:  # of MLX, where a kernel does not compile or run
            return str(error)
    return ""


def _weights() -> mx.array:
    """(S, R, C) float32: ordinary rows, then constant, zero, shifted and tiny ones, an outlier, and ties."""
    weight = np.random.default_rng(0).standard_normal(_SHAPE).astype(np.float32)
    weight[:, 10], weight[:, 11], weight[:, 13] = 0.3, 0.0, weight[:, 13] * 1e-6
    weight[:, 12] += 5.0
    weight[:, 14, ::64] = 50.0
    weight[:, 15:18] = np.round(weight[:, 15:18] * 40) / 8
    return mx.array(weight)


def _bytes(part: mx.array) -> bytes:
    return raw(part).tobytes()


def _cpu_wins(fused: FusedKernels, weight: mx.array) -> bool:
    from mint.kernels import cpu  # its compiled kernels are ready

    rows = max(1, _CONTEST // weight.shape[-1])
    piece = mx.contiguous(weight[:1, :rows])
    dtype, formats = DTYPE_NAMES[piece.dtype], [format for format in AFFINE if format.admits(piece.shape, "F32")]
    ours, seconds = _timed(lambda: fused.squared(piece, formats))
    theirs, cpu_seconds = _timed(lambda: cpu.errors(raw(piece), dtype, formats).squared)
    return cpu_seconds < seconds and bool(np.array_equal(ours, theirs))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a second call, and its seconds: the first one builds and loads kernels."""
    work()
    started = time.perf_counter()
    return work(), time.perf_counter() - started
