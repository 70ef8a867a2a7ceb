"""The GPU path on this machine's GPU: agreement with the CPU, and seconds for layers of an 8B model.

    python -m tools.bench.gpu              measuring, packing, compensating and learning on the GPU
    python -m tools.bench.gpu --cpu        beside this machine's cores, with the losses of both: some minutes
    python -m tools.bench.gpu --rows 2048  fewer rows of inputs

Times are medians of some calls, each finished before the clock stops. Losses are d H d^T on the inputs.
"""

import argparse
import json
import os
import statistics
import sys
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
from mint.kernels.missing_outputs import Missing
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
    parser.add_argument("--cpu", action="store_true", help="measure the CPU's cores too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    began = time.perf_counter()
    backend = GpuBackend()
    record: dict[str, Any] = {"kind": backend.kind, "measures_with": backend.measures_with}
    fused = backend.fused_rounding
    record |= {"compensates_with": backend.compensates_with, "check_seconds": time.perf_counter() - began}
    record["cores"] = os.cpu_count()
    record["measuring"] = measuring(backend, options.runs, cpu_too=options.cpu)
    device = OnDevice(fused) if fused else None
    record["layer"] = {}
    for name, (rows, columns, _) in LAYER.items():
        print(f"{name}: {rows} x {columns}", file=sys.stderr)
        inputs = inputs_of(options.rows, columns)
        record["layer"][name] = on_device(device, made(rows, columns)[0], inputs, options.runs) if device else {}
        if options.cpu:
            record["layer"][name] |= beside_cpu(device, made(rows, columns)[0], inputs)
    print(json.dumps(record) if options.json else json.dumps(record, indent=1))


def measuring(backend: GpuBackend, runs: int, *, cpu_too: bool) -> dict[str, Any]:
    """Seconds to measure all affine formats: by the backend, by MLX operations and maybe by the CPU's cores."""
    weight = made(4096, 14336)
    seconds = {
        "backend": timed(lambda: backend.errors(weight, AFFINE, _NEAREST), runs),
        "operations": timed(lambda: gpu.errors(weight, AFFINE), runs),
        "pack 4/64": timed(lambda: backend.pack(weight, parse_format("4/64"), _NEAREST), runs),
    }
    record = {"weights": weight.size, "seconds": seconds, "for 109B": _SCOUT / weight.size * seconds["backend"]}
    if cpu_too:
        ours, theirs = backend.errors(weight, AFFINE, _NEAREST), cpu.errors(raw(weight), "BF16", AFFINE)
        record["equal to the last bit"] = bool(np.array_equal(ours.squared, theirs.squared))
        seconds["cpu"] = timed(lambda: cpu.errors(raw(weight), "BF16", AFFINE), runs)
    return record


def inputs_of(rows: int, columns: int) -> Any:
    """(rows, columns) float32, whose columns go together."""
    common = mx.random.normal((rows, 64)) @ mx.random.normal((64, columns))
    return np.array(common + mx.random.normal((rows, columns)))


def on_device(device: OnDevice, weight: mx.array, inputs: Any, runs: int) -> dict[str, float]:
    """Seconds for the curvature of inputs, for rounding a matrix, and for learning what its outputs miss."""
    curvature = device.curvature_of(inputs)
    record = {"curvature": timed(lambda: device.curvature_of(inputs), runs)}
    for format in map(parse_format, _FORMATS):
        record[str(format)] = timed(partial(device.pack, raw(weight), "BF16", format, curvature), runs)
    wide, outputs = np.array(weight.astype(mx.float32)), np.array(mx.random.normal((len(inputs), len(weight))))
    missing = Missing(outputs, np.ones(len(weight), np.float32))
    return record | {"learning": timed(lambda: device.with_outputs(wide, inputs, missing), runs)}


def beside_cpu(device: OnDevice | None, weight: mx.array, inputs: Any) -> dict[str, Any]:
    """The CPU's seconds, and how much less than rounding to nearest both lose."""
    on_cpu, record = OnCpu(), dict[str, Any]()
    exact, record["curvature, cpu"] = once(lambda: on_cpu.curvature_of(inputs))
    for format in map(parse_format, _FORMATS):
        name = str(format)
        nearest = loss_of(weight, tuple(map(raw, oracle.pack(weight, format))), name, exact.moments)
        stored, record[f"{name}, cpu"] = once(partial(on_cpu.pack, raw(weight), "BF16", format, exact))
        record[f"{name}, loss, cpu"] = loss_of(weight, stored, name, exact.moments) / nearest
        if device:
            stored = device.pack(raw(weight), "BF16", format, device.curvature_of(inputs))
            record[f"{name}, loss"] = loss_of(weight, stored, name, exact.moments) / nearest
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
