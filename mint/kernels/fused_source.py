"""The source of the fused GPU kernels, one text for Metal and CUDA.

The arithmetic is that of `affine`, operation by operation, so codes, scales, biases and sums are those of the CPU.
`$` marks the words that differ between languages, a row of `DIALECTS`, and constants. All threads of a group run a
phase, `$EACH { ... }`, before any begins the next one: only shared memory lasts from phase to phase. So a plain loop
over the threads runs the same text on a CPU, which is how the tests compile it, as C++.
"""

# N weights of a vector, T their dtype, F formats, LANES partial sums

from dataclasses import dataclass
from functools import cache
from string import Template

from mint.formats.format import AFFINE
from mint.formats.scheme import AFFINE_SCHEME

SEGMENT, LANES = 2048, 16  # those of `compiled`, which imports the compiler
_INPUTS = ("weights", "numbers")
PACKED_TOGETHER = 32  # weights of one thread of the kernel that packs
MEASURE_THREADS, PACK_THREADS = len(AFFINE) * LANES, 256


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words of a language for kernels."""

    function: str  # before a function
    shared: str  # before an array of all threads of a group
    math: str  # before the name of a function of the library
    product: str  # of two float32, never fused with an addition
    thread: str  # index in its group
    group: str  # index of the group
    memory: str  # before a pointer to numbers of an input
    each: str = ""  # before a phase
    sync: str = ""  # after a phase
    prelude: str = ""


METAL = Dialect(
    function="inline",
    shared="threadgroup",
    math="metal::",
    product="((a) * (b))",
    thread="thread_position_in_threadgroup.x",
    group="threadgroup_position_in_grid.x",
    memory="const device",
    sync="threadgroup_barrier(metal::mem_flags::mem_threadgroup);",
    prelude="#pragma METAL fp contract(off)",
)
CUDA = Dialect(
    function="__device__ inline",
    shared="__shared__",
    math="",
    product="__fmul_rn(a, b)",
    thread="threadIdx.x",
    group="blockIdx.x",
    memory="const",
    sync="__syncthreads();",
)

_HEADER = """
$PRELUDE
$FUNCTION float product(float a, float b) { return $PRODUCT; }

struct Grid { float scale; float bias; };

$FUNCTION Grid grid_of(float low, float high, float top) {
    bool from_low = ${MATH}fabs(low) > ${MATH}fabs(high);
    float scale = (high - low) / top;
    scale = scale > 1e-7f ? scale : 1e-7f;
    scale = from_low ? scale : -scale;
    float edge = from_low ? low : high;
    float steps = ${MATH}rint(edge / scale);
    Grid grid;
    grid.scale = steps == 0.0f ? scale : edge / steps;
    grid.bias = steps == 0.0f ? 0.0f : edge;
    return grid;
}

$FUNCTION float nearest_code(float position, float top) {
    position = position > 0.0f ? position : 0.0f;
    return ${MATH}rint(position < top ? position : top);
}

$FUNCTION float squared_error(float value, float scale, float bias, float stored, float top) {
    float code = nearest_code((value - bias) / scale, top);
    float error = (product(code, stored) + bias) - value;
    return product(error, error);
}
"""

# a group of threads measures a segment: first the extremes of all groups, then grids, then thread by format and lane
_MEASURE = """
constexpr unsigned groups = $SEGMENT / 32;  // of 32; then come those of 64 and of 128
constexpr unsigned all_groups = groups + groups / 2 + groups / 4;
const float tops[] = {$TOPS};
$SHARED float values[$SEGMENT];
$SHARED float lows[all_groups], highs[all_groups];
$SHARED float scales[$WIDTHS * all_groups], biases[$WIDTHS * all_groups], stored[$WIDTHS * all_groups];
const unsigned start = $GROUP * $SEGMENT;
const unsigned rest = numbers[0] - start;
const unsigned count = rest < $SEGMENT ? rest : $SEGMENT;

$EACH {
    for (unsigned i = $THREAD; i < $SEGMENT; i += $THREADS)
        values[i] = i < count ? static_cast<float>(weights[start + i]) : 0.0f;
}
$SYNC
$EACH {
    for (unsigned i = $THREAD; i < groups; i += $THREADS) {
        float low = values[32 * i], high = low;
        for (unsigned j = 0; j < 32; j++) {
            const float value = values[32 * i + (i + j) % 32];  // threads read from different banks
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        lows[i] = low;
        highs[i] = high;
    }
}
$SYNC
$EACH {
    for (unsigned i = groups + $THREAD; i < all_groups; i += $THREADS) {
        const bool is_64 = i < groups + groups / 2;
        const unsigned parts = is_64 ? 2 : 4;
        const unsigned first = parts * (i - (is_64 ? groups : groups + groups / 2));
        float low = lows[first], high = highs[first];
        for (unsigned j = first + 1; j < first + parts; j++) {
            low = lows[j] < low ? lows[j] : low;
            high = highs[j] > high ? highs[j] : high;
        }
        lows[i] = low;
        highs[i] = high;
    }
}
$SYNC
$EACH {
    for (unsigned i = $THREAD; i < $WIDTHS * all_groups; i += $THREADS) {
        const Grid grid = grid_of(lows[i % all_groups], highs[i % all_groups], tops[i / all_groups]);
        scales[i] = grid.scale;
        biases[i] = grid.bias;
        stored[i] = static_cast<float>(static_cast<T>(grid.scale));
    }
}
$SYNC
$EACH {
    const unsigned format = $THREAD / $LANES, lane = $THREAD % $LANES;
    const unsigned width = format / 3, level = format % 3, size = 32 << level;
    const unsigned first = width * all_groups + (level == 0 ? 0 : level == 1 ? groups : groups + groups / 2);
    float sum = 0.0f;
    for (unsigned j = 0; j < count / size * size; j += 32) {
        const unsigned i = first + j / size;
        const float one = squared_error(values[j + lane], scales[i], biases[i], stored[i], tops[width]);
        const float other = squared_error(values[j + lane + 16], scales[i], biases[i], stored[i], tops[width]);
        sum += one + other;
    }
    sums[($GROUP * $LANES + lane) * ($THREADS / $LANES) + format] = sum;
}
"""

# a thread packs 32 weights; the first thread of a group of weights stores its scale and bias
_PACK = """
const unsigned count = numbers[0], bits = numbers[1], size = numbers[2];
const float top = static_cast<float>((1u << bits) - 1u);

$EACH {
    const unsigned start = 32 * ($GROUP * $THREADS + $THREAD);
    const unsigned first = start / size * size;
    if (start < count) {
        float low = static_cast<float>(weights[first]), high = low;
        for (unsigned j = 1; j < size; j++) {
            const float value = static_cast<float>(weights[first + j]);
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        const Grid grid = grid_of(low, high, top);
        if (start == first) {
            scales[start / size] = static_cast<T>(grid.scale);
            biases[start / size] = static_cast<T>(grid.bias);
        }
        unsigned word = 0, filled = 0, index = start / 32 * bits;
        for (unsigned j = start; j < start + 32; j++) {
            const float position = (static_cast<float>(weights[j]) - grid.bias) / grid.scale;
            const unsigned code = static_cast<unsigned>(nearest_code(position, top));
            word |= code << filled;
            filled += bits;
            if (filled >= 32) {
                filled -= 32;
                codes[index++] = word;
                word = filled ? code >> (bits - filled) : 0u;
            }
        }
    }
}
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in one language: names of its arrays, threads of a group, the text before it, and that of its body."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    threads: int
    header: str
    body: str


@cache
def measure_kernel(dialect: Dialect) -> Kernel:
    """Sums the squared errors of every format of `AFFINE`: weights (N,) -> sums (N / SEGMENT, LANES, F)."""
    return kernel_of(dialect, "mint_measure", _INPUTS, ("sums",), MEASURE_THREADS, _MEASURE)


@cache
def pack_kernel(dialect: Dialect) -> Kernel:
    """Packs in an affine format: weights (N,) -> codes (N * bits / 32,), scales and biases (N / group_size,)."""
    return kernel_of(dialect, "mint_pack", _INPUTS, ("codes", "scales", "biases"), PACK_THREADS, _PACK)


def kernel_of(
    dialect: Dialect,
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    threads: int,
    body: str,
    header: str = "",
) -> Kernel:
    """A kernel in the words of a language; `header` has its own functions."""
    words = {
        "FUNCTION": dialect.function,
        "SHARED": dialect.shared,
        "MATH": dialect.math,
        "PRODUCT": dialect.product,
        "THREAD": dialect.thread,
        "GROUP": dialect.group,
        "MEMORY": dialect.memory,
        "EACH": dialect.each,
        "SYNC": dialect.sync,
        "PRELUDE": dialect.prelude,
        "LARGEST": "3.40282347e38f",
        "THREADS": str(threads),
        "SEGMENT": str(SEGMENT),
        "LANES": str(LANES),
        "WIDTHS": str(len(AFFINE_SCHEME.bits)),
        "TOPS": ", ".join(f"{2**bits - 1}.0f" for bits in AFFINE_SCHEME.bits),
    }
    functions, text = (Template(template).substitute(words) for template in (_HEADER + header, body))
    return Kernel(name, inputs, outputs, threads, functions, text)
