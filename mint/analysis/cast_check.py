"""Refuses a cast to float16 that changes weights, or in which the model overflows.

float16 ends at 65504 and has no numbers below 6e-8, where bfloat16 and float32 go on. Errors of formats are measured
against the weights after the cast, so a cast that loses weights would be invisible in every later figure. Within its
range float16 rounds to 11 bits, a squared relative error of at most 2^-22; more is a loss by the range.
"""

from collections.abc import Collection

import mlx.core as mx
import numpy as np

from mint.core.errors import MintError
from mint.kernels.storage import numpy_view
from mint.model.source import Source

_LARGEST = 65504.0
_LIMIT = 2.0**-22  # of |f16(w) - w|^2 / |w|^2
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
_BLOCK = 1 << 22  # weights looked at together


def check_cast(source: Source, lacking: Collection[str] = ()) -> None:
    """Read every array that is cast to float16 from a wider range; `MintError` names the first that changes.

    Raises it too for an array in one of the `lacking` shards, which read as zeros.
    """
    if not (names := _cast(source)):
        return
    tensors = source.tensors()
    shards = {tensors[tensor].shard for sources in names.values() for tensor in sources}
    if missing := sorted(shards & set(lacking)):
        fault = f"{missing[0]} is not on this machine, so the cast of its weights to float16 cannot be checked"
        raise MintError(f"{fault}; needed: --dtype bfloat16, or all shards here")
    arrays = source.uncast_arrays()
    for name in names:
        if fault := _fault(arrays.pop(name)):
            raise MintError(
                f"{name}: float16 cannot hold its values: {fault}; needed: --dtype bfloat16, or float32. (float16 is "
                "the dtype of --dtype or of config.json)"
            )


def check_activations(source: Source, largest: float) -> None:
    """Raise `MintError` if the `largest` value between the layers overflows in a cast to float16."""
    if largest > _LARGEST and _cast(source):
        raise MintError(
            f"{source.folder.name}: values between its layers reach {largest:.3g}, float16 ends at {_LARGEST:.0f}, so "
            "the model overflows there; needed: --dtype bfloat16, or float32"
        )


def _cast(source: Source) -> dict[str, tuple[str, ...]]:
    """The arrays that are cast to float16 from a wider range, each with its tensors."""
    before = {name: tensor.dtype for name, tensor in source.tensors().items()}
    feeding = {f"{unit.path}.weight": (unit.dtype, unit.sources) for unit in source.units}
    feeding |= {parameter.name: (parameter.dtype, parameter.sources) for parameter in source.parameters}
    return {
        name: sources
        for name, (dtype, sources) in feeding.items()
        if dtype == "F16" and is_wider([before.get(tensor, "") for tensor in sources])
    }


def is_wider(dtypes: Collection[str]) -> bool:
    """True for stored dtypes whose values are not float16's: packed integers with scales in float16 are."""
    return "F16" not in dtypes or any(dtype != "F16" and dtype not in _INTEGERS for dtype in dtypes)


def _fault(array: mx.array) -> str:
    """The loss of an array in float16, in words; empty if it is no more than rounding."""
    values = array.reshape(-1)
    lost, energy, beyond = 0.0, 0.0, 0
    for start in range(0, values.size, _BLOCK):
        block = numpy_view(values[start : start + _BLOCK].astype(mx.float32)).astype(np.float64)
        block = block[np.isfinite(block)]  # others are found when the unit is measured
        held = np.abs(block) <= _LARGEST
        beyond += int(np.count_nonzero(~held))
        error = block[held].astype(np.float16).astype(np.float64) - block[held]
        lost += float(np.vdot(error, error))
        energy += float(np.vdot(block, block))
    if beyond:
        return f"{beyond} are beyond its largest number, 65504"
    if energy and lost / energy > _LIMIT:
        return f"they are too small, and {lost / energy:.2g} of their energy would be lost"
    return ""
