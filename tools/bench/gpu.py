"""The GPU path on this machine's GPU: agreement with the CPU, and seconds for layers of an 8B model.

    python -m tools.bench.gpu              measuring, packing and compensating, beside this machine's CPU cores
    python -m tools.bench.gpu --rows 2048  fewer rows of inputs

Times are medians of some calls, each finished before the clock stops. Losses are d H d^T on the inputs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mint.formats.format import AFFINE, parse_format
from mint.formats.rounding import ROUNDINGS
from mint.kernels import cpu, gpu, oracle
from mint.kernels.compensation import OnCpu, OnDevice
from mint.kernels.gpu import GpuBackend
from mint.kernels.rounding_check import loss
from mint.kernels.storage import from_raw, raw

LAYER = {  # rows and columns of an 8B model's matrices, and how many a layer has of them
    "q, o": (4096, 4096, 2),
    "k, v": (1024, 4096, 2),
    "gate, up": (14336, 4096, 2),
    "down": (4096, 14336, 1),
}
_JUDGED = 256  # rows of weights whose losses are compared
_FORMATS = ("4/64", "3/64", "nvfp4")
_NEAREST = ROUNDINGS["nearest"]
_SCOUT = 109e9  # weights of Llama 4 Scout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384, help="rows of inputs (default 16384)")
    parser.add_argument("--runs", type=int, default=3, help="calls per figure (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    began = time.perf_counter()
    backend = GpuBackend()
    record: dict[str, Any] = {"kind": backend.kind, "measures_with": backend.measures_with}
    fused = backend.fused_rounding
    record |= {"compensates_with": backend.compensates_with, "check_seconds": time.perf_counter() - began}
    record["cores"] = os.cpu_count()
    record["measuring"] = measuring(backend, options.runs)
    device = OnDevice(fused) if fused else None
    record["compensating"] = {
        name: compensating(device, shape[0], shape[1], options.rows, options.runs) for name, shape in LAYER.items()
    }
    print(json.dumps(record) if options.json else json.dumps(record, indent=1))


def measuring(backend: GpuBackend, runs: int) -> dict[str, Any]:
    """Weights per second of all affine formats, by fused kernels, MLX operations and the CPU's cores."""
    weight = made(4096, 14336)
    seconds = {
        "fused": timed(lambda: backend.errors(weight, AFFINE, _NEAREST), runs),
        "operations": timed(lambda: gpu.errors(weight, AFFINE), runs),
        "cpu": timed(lambda: cpu.errors(raw(weight), "BF16", AFFINE), runs),
        "pack 4/64": timed(lambda: backend.pack(weight, parse_format("4/64"), _NEAREST), runs),
    }
    ours, theirs = backend.errors(weight, AFFINE, _NEAREST), cpu.errors(raw(weight), "BF16", AFFINE)
    return {
        "weights": weight.size,
        "seconds": seconds,
        "equal_to_the_last_bit": bool(np.array_equal(ours.squared, theirs.squared)),
        "seconds_for_109B": _SCOUT / weight.size * seconds["fused"],
    }


def compensating(device: OnDevice | None, rows: int, columns: int, count: int, runs: int) -> dict[str, Any]:
    """Seconds for the curvature of inputs and for rounding a matrix, and how much less both lose than rounding."""
    weight = made(rows, columns)[0]
    random = np.random.default_rng(1)
    mixed = random.standard_normal((count, columns // 8), np.float32) @ random.standard_normal(
        (columns // 8, columns), np.float32
    )
    inputs = mixed / np.float32(np.sqrt(columns / 8)) + random.standard_normal((count, columns), np.float32)
    on_cpu, record = OnCpu(), dict[str, Any]()
    exact, record["cpu curvature"] = once(lambda: on_cpu.curvature(inputs))
    ours = None
    if device:
        device.curvature(inputs)
        ours, record["curvature"] = once(lambda: device.curvature(inputs))
    for format in map(parse_format, _FORMATS):
        name = str(format)
        nearest = loss_of(weight, tuple(map(raw, oracle.pack(weight, format))), name, exact.moments)
        stored, seconds = once(partial(on_cpu.pack, raw(weight), "BF16", format, exact))
        record[f"{name} cpu"] = {"seconds": seconds, "loss": loss_of(weight, stored, name, exact.moments) / nearest}
        if device and ours:
            seconds = timed(partial(device.pack, raw(weight), "BF16", format, ours), runs)
            stored = device.pack(raw(weight), "BF16", format, ours)
            record[name] = {"seconds": seconds, "loss": loss_of(weight, stored, name, exact.moments) / nearest}
    return record


def made(rows: int, columns: int) -> mx.array:
    """(1, rows, columns) random bf16 weights."""
    weight = (mx.random.normal((1, rows, columns), key=mx.random.key(rows + columns)) * 0.02).astype(mx.bfloat16)
    mx.eval(weight)
    return weight


def loss_of(weight: mx.array, parts: tuple[Any, ...], name: str, moments: Any) -> float:
    """The loss of stored tensors, on some rows."""
    first = [part[:_JUDGED] for part in parts]
    scales = [mx.array(part) if part.dtype == np.uint8 else from_raw(part, "BF16") for part in first[1:]]
    return loss(weight[:_JUDGED], oracle.dequantize((mx.array(first[0]), *scales), parse_format(name)), moments)


def once(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call and its seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def timed(call: Callable[[], Any], runs: int) -> float:
    """The median seconds of a call, after one that builds kernels."""
    call()
    return statistics.median(once(call)[1] for _ in range(runs))


if __name__ == "__main__":
    main()
