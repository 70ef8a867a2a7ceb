"""Decides on this machine if compensated rounding runs on the GPU: only where it is as near as the CPU's.

The loss d H d^T of a small problem is compared with that of the CPU's kernels, which the tests keep true here. The
answer is kept for each chip, version and text of the kernels.
"""

# T rows of inputs, R rows of weights, C columns

import mlx.core as mx
import numpy as np

from mint.formats.format import parse_format
from mint.kernels import oracle
from mint.kernels.fused_check import remembered
from mint.kernels.fused_rounding import DeviceCurvature, Floats, FusedRounding
from mint.kernels.rounding_source import refine_kernel, round_affine_kernel, round_fp4_kernel
from mint.kernels.storage import MLX_DTYPES, numpy_view

TOLERANCE = 0.02  # of a loss, which may be less
_FACTORED = 64  # columns: so that all kinds of products are tried
_ROWS, _COLUMNS, _INPUTS, _FACTORS = 40, 256, 300, 12
LOSSES = {  # of the CPU's kernels, relative to rounding to nearest
    ("BF16", "2/32"): 0.3734,
    ("BF16", "3/64"): 0.4431,
    ("F16", "4/64"): 0.4417,
    ("F32", "6/128"): 0.4867,
    ("BF16", "nvfp4"): 0.3909,
    ("BF16", "mxfp4"): 0.5014,
}


def rounding_fault_of(rounding: FusedRounding, chip: str) -> str:
    """Empty where the kernels are as near as the CPU's on this chip; else the first difference or error."""
    kernels = (round_affine_kernel, round_fp4_kernel, refine_kernel)
    text = repr([kernel(rounding.dialect) for kernel in kernels])
    return str(remembered("rounding", text, chip, lambda: _fault(rounding)))


def problem() -> tuple[Floats, Floats]:
    """Weights (R, C) and rows of inputs (T, C), whose columns go together."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((_ROWS, _COLUMNS)) * 0.03
    weight[3], weight[4], weight[5] = 0.0, 0.03, weight[5] * 1e-4
    factors = random.standard_normal((_INPUTS, _FACTORS)) @ random.standard_normal((_FACTORS, _COLUMNS))
    rows = factors + random.standard_normal((_INPUTS, _COLUMNS)) * np.exp2(random.integers(-2, 1, _COLUMNS))
    return weight.astype(np.float32), rows.astype(np.float32)


def loss(weight: mx.array, stored: mx.array, moments: Floats) -> float:
    """The d H d^T of all rows of (R, C) weights that are stored as others, under H (C, C)."""
    difference = (_wide(stored) - _wide(weight)).astype(np.float64)
    return float(np.vdot(difference @ moments, difference))


def _wide(array: mx.array) -> Floats:
    view: Floats = numpy_view(mx.contiguous(array.astype(mx.float32, stream=mx.cpu), stream=mx.cpu))
    return view


def _fault(rounding: FusedRounding) -> str:
    values, rows = problem()
    try:
        curvature = DeviceCurvature.of(rows, _FACTORED)
        moments = _wide(curvature.moments)
        for (dtype, name), expected in LOSSES.items():
            format, weight = parse_format(name), mx.array(values).astype(MLX_DTYPES[dtype])
            parts = rounding.pack(weight, MLX_DTYPES[dtype], format, curvature)
            mx.eval(parts)
            with mx.stream(mx.cpu):
                ours = loss(weight, oracle.dequantize(parts, format), moments)
                nearest = loss(weight, oracle.dequantize(oracle.pack(weight, format), format), moments)
            if not ours <= nearest * expected * (1 + TOLERANCE):
                return f"a loss of {ours / nearest:.3f} and not {expected:.3f} in {format} with scales of {dtype}"
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:  # of a kernel that does not compile or run
        return str(error)
    return ""
