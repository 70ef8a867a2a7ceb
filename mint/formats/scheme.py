"""The meaning of stored codes, scales and biases: a scheme is one entry, for one of MLX's modes.

A weight is value(code) * scale, plus bias where there is one; weights of a group share scale and bias. `mx.quantize`
and `mx.dequantize` with the scheme's mode are its reference kernels. A scheme that the compiled kernels know besides
has a number there; one that they do not know is measured and packed by the reference, rounded to nearest.
A scheme from outside is one more entry of `SCHEMES`: its formats are measured, and planned where the rules name them.
"""

from dataclasses import dataclass, field
from math import inf, nan


@dataclass(frozen=True, slots=True)
class ReadFactor:
    """Time to read a byte of a scheme at so many bits, relative to a byte of 4/64."""

    bits: int
    factor: float
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """One of MLX's modes of storage, as data."""

    mode: str  # as MLX calls it
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    read_factors: tuple[ReadFactor, ...]  # one for each number of bits
    code_values: tuple[float, ...] = ()  # by code; empty: a code is its own value
    scale_values: tuple[float, ...] = ()  # by stored byte; empty: scales are stored in the weight's dtype
    has_bias: bool = False
    is_default: bool = False  # the meaning of an entry of config.json without `mode`
    kernel: int = -1  # its number in the compiled kernels; -1: they do not know it
    loaders: frozenset[str] = field(default_factory=frozenset)  # that read it, beside those whose row names it

    @property
    def is_compiled(self) -> bool:
        """True where compiled kernels know the scheme; MLX's own operations store and read the others."""
        return self.kernel >= 0

    def name(self, bits: int, group_size: int) -> str:
        """A format of this scheme as people write it: `4/64`, `mxfp4`, or `mode-4/64` where a mode has several."""
        if self.is_default:
            return f"{bits}/{group_size}"
        return self.mode if len(self.bits) * len(self.group_sizes) == 1 else f"{self.mode}-{bits}/{group_size}"

    def scale_dtype(self, dtype: str) -> str:
        """The safetensors dtype of the scales of a weight of `dtype`."""
        return "U8" if self.scale_values else dtype

    def read_factor(self, bits: int) -> float:
        """Time to read a byte, relative to a byte of 4/64."""
        return next(row.factor for row in self.read_factors if row.bits == bits)


def _e4m3() -> tuple[float, ...]:
    """The 256 8-bit floats of 4 bits of exponent and 3 of mantissa, without infinities."""
    magnitudes = [
        (8 + (byte & 7)) * 2.0 ** ((byte >> 3) - 10) if byte >> 3 else (byte & 7) * 2.0**-9 for byte in range(127)
    ]
    return (*magnitudes, nan, *(-value for value in magnitudes), nan)


E4M3 = _e4m3()
E8M0 = (*(2.0 ** (byte - 127) for byte in range(255)), inf)  # powers of two
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*_E2M1, *(-value for value in _E2M1))  # fp4: a sign and one of eight magnitudes

_BENCHMARKS = "https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/BENCHMARKS.md"
_M4_MAX = f"{_BENCHMARKS}: Qwen3-4B and Qwen3-30B-A3B, M4 Max, mlx 0.29.2"
_FP4 = ReadFactor(4, 1.02, "ml-explore/mlx#2946: Qwen3-4B, M4 Max")

AFFINE_SCHEME = Scheme(
    "affine",
    bits=(2, 3, 4, 5, 6, 8),
    group_sizes=(32, 64, 128),
    read_factors=(
        ReadFactor(2, 1.11, "ml-explore/mlx#3852: 1.15 and 1.07 for two shapes at group 128, M4 Pro, mlx 0.32.0"),
        ReadFactor(
            3,
            1.15,
            "estimate between 2 bits and 1.29, at which 3/64 takes as long as 4/64: faster than that on M2 Ultra,"
            " slower on M1 Max (ml-explore/mlx#1613, without numbers)",
        ),
        ReadFactor(4, 1.0, "by definition"),
        ReadFactor(5, 1.04, f"{_M4_MAX}: 1.03 and 1.06"),
        ReadFactor(6, 1.03, f"{_M4_MAX}: 1.01 and 1.04"),
        ReadFactor(8, 1.0, f"{_M4_MAX}: the line goes through it"),
    ),
    has_bias=True,
    is_default=True,
    kernel=0,
)
MXFP4_SCHEME = Scheme("mxfp4", (4,), (32,), (_FP4,), code_values=E2M1, scale_values=E8M0, kernel=1)
NVFP4_SCHEME = Scheme("nvfp4", (4,), (16,), (_FP4,), code_values=E2M1, scale_values=E4M3, kernel=2)
KEEP_SCHEME = Scheme("keep", (0,), (1,), (ReadFactor(0, 1.0, f"{_M4_MAX}: bf16, 1.00"),))

SCHEMES = {scheme.mode: scheme for scheme in (AFFINE_SCHEME, MXFP4_SCHEME, NVFP4_SCHEME, KEEP_SCHEME)}
