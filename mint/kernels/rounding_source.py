"""The source of the fused GPU kernels of compensated rounding, one text for Metal and CUDA.

The arithmetic is that of `compensate`, `search_affine` and `refine`, one thread a row. Weights lie column by column, so
that neighbouring threads read neighbouring numbers. All weights are divided by one power of two, the unit. Sums are
float32 and may be fused, so results are those of one device.
"""

# R rows, S columns of a group, N scales of a table; T dtype of scales

from functools import cache

from mint.kernels.fused_source import Dialect, Kernel, kernel_of

ROUND_THREADS = 64

_AFFINE_HEADER = """
struct Sums { float squares, residues, products, codes, code_squares; };

// the sums of a group under a grid, d being the distance to the code in steps of the grid
$FUNCTION Sums sums_of(
    $MEMORY float* values, $MEMORY float* heights, unsigned rows, unsigned size, float scale, float bias, float top
) {
    const float inverse = 1.0f / scale;
    Sums sums = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned i = 0; i < size; i++) {
        const float position = (values[i * rows] - bias) * inverse;
        const float code = nearest_code(position, top);
        const float d = position - code;
        const float high_d = heights[i] * d, high_code = heights[i] * code;
        sums.squares += high_d * d;
        sums.residues += high_d;
        sums.products += high_d * code;
        sums.codes += high_code;
        sums.code_squares += high_code * code;
    }
    return sums;
}
"""

# a thread searches the scale and bias of its row's group, then rounds column after column
_ROUND_AFFINE = """
const unsigned rows = numbers[0], bits = numbers[1], size = numbers[2];
const unsigned starts = numbers[3], first_passes = numbers[4], beside_passes = numbers[5];
const float step = factors[0], unit = factors[1], inverse_unit = factors[2];
const float top = static_cast<float>((1u << bits) - 1u);

$EACH {
    const unsigned row = $GROUP * $THREADS + $THREAD;
    if (row < rows) {
        float low = values[row], high = low, total = heights[0];
        for (unsigned i = 1; i < size; i++) {
            const float value = values[i * rows + row];
            low = value < low ? value : low;
            high = value > high ? value : high;
            total += heights[i];
        }
        const Grid plain = grid_of(low * unit, high * unit, top);
        float scale = static_cast<float>(static_cast<T>(plain.scale)) * inverse_unit;
        float bias = static_cast<float>(static_cast<T>(plain.bias)) * inverse_unit;
        float best_scale = scale, best_bias = bias, best = $LARGEST;

        // candidates: MLX's grid, spans from the whole group on down, then descents from the best and from beside it
        const unsigned last = starts + 3;
        for (unsigned candidate = 0; candidate <= last; candidate++) {
            unsigned passes = 1;
            if (candidate > 0) {
                if (candidate <= starts) {
                    const float share = 1.0f - static_cast<float>(candidate - 1) * step;
                    scale = (high - low) * share / top;
                    bias = low + (high - low) * 0.5f * (1.0f - share);
                } else {
                    const unsigned way = candidate - starts;
                    const float factor = way == 1 ? 1.0f : way == 2 ? 1.0f + step : 1.0f - step;
                    scale = best_scale * factor;
                    bias = best_bias + 0.5f * top * (best_scale - scale);
                    passes = way == 1 ? first_passes : beside_passes;
                }
                // a scale whose weights overflow becomes 0: its error is no number, so it is never kept
                scale = static_cast<float>(static_cast<T>(scale * unit));
                scale = ${MATH}fabs(scale * top) <= $LARGEST ? scale * inverse_unit : 0.0f;
                bias = static_cast<float>(static_cast<T>(bias * unit)) * inverse_unit;
            }
            for (unsigned pass = 0; pass < passes; pass++) {
                const Sums sums = sums_of(values + row, heights, rows, size, scale, bias, top);
                const float error = sums.squares * scale * scale;
                if (error < best) {
                    best = error;
                    best_scale = scale;
                    best_bias = bias;
                }
                if (pass + 1 < passes) {  // least squares: the scale for these codes, the bias for that scale
                    const float spread = total * sums.code_squares - sums.codes * sums.codes;
                    const float change = (total * sums.products - sums.codes * sums.residues) / spread;
                    float next = static_cast<float>(static_cast<T>((scale + scale * change) * unit));
                    next = ${MATH}fabs(next * top) <= $LARGEST ? next * inverse_unit : 0.0f;
                    const float residues = scale * sums.residues - (next - scale) * sums.codes;
                    bias = static_cast<float>(static_cast<T>((bias + residues / total) * unit)) * inverse_unit;
                    scale = next;
                }
            }
        }
        scales[row] = static_cast<T>(best_scale * unit);
        biases[row] = static_cast<T>(best_bias * unit);
        const float inverse = 1.0f / best_scale;
        for (unsigned c = 0; c < size; c++) {
            float value = values[c * rows + row];
            for (unsigned j = 0; j < c; j++)
                value -= losses[j * rows + row] * upper[j * size + c];
            const float code = nearest_code((value - best_bias) * inverse, top);
            codes[c * rows + row] = static_cast<unsigned char>(code);
            losses[c * rows + row] = (value - (code * best_scale + best_bias)) / upper[c * size + c];
        }
    }
}
"""

_FP4_HEADER = """
$FUNCTION float magnitude(unsigned index) {
    return index < 5 ? 0.5f * static_cast<float>(index) : index == 5 ? 3.0f : index == 6 ? 4.0f : 6.0f;
}

// the index of the fp4 value that is nearest to a magnitude over a scale
$FUNCTION unsigned nearest_index(float value, float scale) {
    if (!(scale > 0.0f))
        return 0;
    return (value > scale * 0.25f) + (value > scale * 0.75f) + (value > scale * 1.25f) + (value > scale * 1.75f)
        + (value > scale * 2.5f) + (value > scale * 3.5f) + (value > scale * 5.0f);
}
"""

# a thread tries the scales near that of its row's largest weight, then rounds column after column
_ROUND_FP4 = """
const unsigned rows = numbers[0], size = numbers[1], last = numbers[2], below = numbers[3], above = numbers[4];

$EACH {
    const unsigned row = $GROUP * $THREADS + $THREAD;
    if (row < rows) {
        float largest = 0.0f;
        for (unsigned i = 0; i < size; i++) {
            const float value = ${MATH}fabs(values[i * rows + row]);
            largest = value > largest ? value : largest;
        }
        unsigned low = 0, high = last;  // the first scale of the table that is not below
        while (low < high) {
            const unsigned middle = (low + high) / 2;
            if (table[middle] * 6.0f < largest)
                low = middle + 1;
            else
                high = middle;
        }
        if (low > 0 && largest - table[low - 1] * 6.0f < table[low] * 6.0f - largest)
            low--;
        const unsigned nearest = low, lowest = nearest > below ? nearest - below : 0;
        const unsigned highest = nearest + above < last ? nearest + above : last;
        float best = $LARGEST;
        unsigned chosen = nearest;
        for (unsigned byte = lowest; byte <= highest; byte++) {
            float error = 0.0f;
            for (unsigned i = 0; i < size; i++) {
                const float value = ${MATH}fabs(values[i * rows + row]);
                const float d = magnitude(nearest_index(value, table[byte])) * table[byte] - value;
                error += heights[i] * d * d;
            }
            if (error < best) {
                best = error;
                chosen = byte;
            }
        }
        scales[row] = static_cast<unsigned char>(chosen);
        const float scale = table[chosen];
        for (unsigned c = 0; c < size; c++) {
            float value = values[c * rows + row];
            for (unsigned j = 0; j < c; j++)
                value -= losses[j * rows + row] * upper[j * size + c];
            const unsigned index = nearest_index(${MATH}fabs(value), scale);
            const bool negative = value < 0.0f && index > 0;
            codes[c * rows + row] = static_cast<unsigned char>(negative ? index + 8 : index);
            const float stored = magnitude(index) * scale;
            losses[c * rows + row] = (value - (negative ? -stored : stored)) / upper[c * size + c];
        }
    }
}
"""

# a thread rounds the codes of its row's group anew and refits the grid; the slope of a column follows from all changes.
# The fit counts codes from the middle one, which leaves float32 enough digits
_REFINE = """
const unsigned rows = numbers[0], bits = numbers[1], size = numbers[2], rounds = numbers[3];
const float unit = factors[0], inverse_unit = factors[1], singular = factors[2];
const float top = static_cast<float>((1u << bits) - 1u), middle = 0.5f * top;

$EACH {
    const unsigned row = $GROUP * $THREADS + $THREAD;
    if (row < rows) {
        float scale = static_cast<float>(scales[row]) * inverse_unit;
        float bias = static_cast<float>(biases[row]) * inverse_unit;
        for (unsigned c = 0; c < size; c++) {
            new_codes[c * rows + row] = codes[c * rows + row];
            changes[c * rows + row] = 0.0f;
        }
        for (unsigned round = 0; round < rounds && scale != 0.0f; round++) {
            const float inverse = 1.0f / scale;
            for (unsigned c = 0; c < size; c++) {
                const float own = moments[c * size + c];
                if (!(own > 0.0f))
                    continue;
                float slope = gradient[c * rows + row], other = 0.0f;
                for (unsigned j = 0; j < size; j += 2) {
                    slope += changes[j * rows + row] * moments[j * size + c];
                    other += changes[(j + 1) * rows + row] * moments[(j + 1) * size + c];
                }
                const float before = static_cast<float>(new_codes[c * rows + row]);
                const float code = nearest_code((before * scale - (slope + other) / own) * inverse, top);
                if (code != before) {
                    new_codes[c * rows + row] = static_cast<unsigned char>(code);
                    changes[c * rows + row] += (code - before) * scale;
                }
            }
            float both = 0.0f, mixed = 0.0f, alone = 0.0f, first = 0.0f, second = 0.0f;
            for (unsigned j = 0; j < size; j++) {
                float weighted = 0.0f, total = 0.0f;
                for (unsigned i = 0; i < size; i++) {
                    const float moment = moments[i * size + j];
                    weighted += (static_cast<float>(new_codes[i * rows + row]) - middle) * moment;
                    total += moment;
                }
                const float code = static_cast<float>(new_codes[j * rows + row]) - middle;
                const float change = changes[j * rows + row], slope = gradient[j * rows + row];
                both += weighted * code;
                mixed += weighted;
                alone += total;
                first -= slope * code + change * weighted;
                second -= slope + change * total;
            }
            const float determinant = both * alone - mixed * mixed;
            if (!(determinant > singular * both * alone))
                continue;
            const float fitted = scale + (first * alone - second * mixed) / determinant;
            const float new_scale = static_cast<float>(static_cast<T>(fitted * unit)) * inverse_unit;
            const float step = new_scale - scale;
            const float moved = bias + (second - mixed * step) / alone - step * middle;
            const float new_bias = static_cast<float>(static_cast<T>(moved * unit)) * inverse_unit;
            const float lifted = new_bias - bias + step * middle;
            const float gain = 2.0f * (step * first + lifted * second) - step * step * both
                - 2.0f * step * lifted * mixed - lifted * lifted * alone;
            if (gain > 0.0f && new_scale != 0.0f) {  // false for infinities too
                for (unsigned j = 0; j < size; j++)
                    changes[j * rows + row] += step * static_cast<float>(new_codes[j * rows + row]) + (new_bias - bias);
                scale = new_scale;
                bias = new_bias;
            }
        }
        new_scales[row] = static_cast<T>(scale * unit);
        new_biases[row] = static_cast<T>(bias * unit);
    }
}
"""


@cache
def round_affine_kernel(dialect: Dialect) -> Kernel:
    """Rounds a group: values (S, R), heights (S,), upper (S, S) -> codes and losses (S, R), scales and biases (R,)."""
    return kernel_of(
        dialect,
        "mint_round_affine",
        ("values", "heights", "upper", "numbers", "factors"),
        ("codes", "losses", "scales", "biases"),
        ROUND_THREADS,
        _ROUND_AFFINE,
        _AFFINE_HEADER,
    )


@cache
def round_fp4_kernel(dialect: Dialect) -> Kernel:
    """Rounds a group: values (S, R), heights (S,), upper (S, S), table (N,) -> codes, losses (S, R), scales (R,)."""
    return kernel_of(
        dialect,
        "mint_round_fp4",
        ("values", "heights", "upper", "table", "numbers"),
        ("codes", "losses", "scales"),
        ROUND_THREADS,
        _ROUND_FP4,
        _FP4_HEADER,
    )


@cache
def refine_kernel(dialect: Dialect) -> Kernel:
    """Refines a group: gradient and codes (S, R), moments (S, S), scales, biases (R,) -> the same anew, and changes."""
    return kernel_of(
        dialect,
        "mint_refine",
        ("gradient", "codes", "moments", "scales", "biases", "numbers", "factors"),
        ("new_codes", "changes", "new_scales", "new_biases"),
        ROUND_THREADS,
        _REFINE,
    )
