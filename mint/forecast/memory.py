"""The memory that a request takes at most, by arithmetic on the headers: an upper bound of the peak of all processes.

Compensation holds one of these at a time, each named by its step: the model that writes the text; the original, one
layer after the other; one layer or the head of the result with its inputs, and what one unit takes to be rounded; the
logits of a block of sequences. `Walk` and `compensate` keep to it.
"""

# T tokens, C columns, V vocabulary

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil

from mint.analysis.probes.own_text import BASES_OF_TEXT, WIDE, text_bytes
from mint.analysis.unit_inputs import WEIGHTS
from mint.assembly.agreement import LENGTH
from mint.assembly.layer_inputs import LOGITS, ROWS
from mint.core.errors import MintError
from mint.core.memory import PROCESSES_BYTES
from mint.core.sizes import enough_size, format_size
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.coupling import MOST_ROWS
from mint.model.kv_trace import active_experts
from mint.model.passes.gradients import BYTES
from mint.model.roles import TOWER, layer_path
from mint.model.source import Source
from mint.quality.sequences import CALIBRATION, JUDGED, TRAINING, TextSize
from mint.run.stacks import BLOCK, comes_in_blocks, held_bytes, may_come_in_blocks

_MOMENTS = 24  # bytes for each of C^2 second moments while they are factored
_PACKING = 12  # for each weight of a block that is compensated
_WHOLE = (
    2.3  # times the bytes of a unit that comes whole: its weight, and its packed parts before and after they are joined
)
_COMPARED = 16  # for each logit of a block
SHARED = ("k", "v", "up", "expert_up")  # roles whose inputs are also those of another unit
TEXT = TextSize(CALIBRATION.count + JUDGED, CALIBRATION.window)


def needed_memory(source: Source, rounding: str, base: str) -> dict[str, int]:
    """Bytes of each step at most; `base` is that of the model that writes the text of a compensation."""
    calls = matrices_per_token(source)
    steps = {
        "measure and write": max((_writing(source, unit) for unit in source.units), default=0),
        "verify": max((_verifying(source, unit, calls[unit.path]) for unit in source.units), default=0),
    }
    if ROUNDINGS[rounding].needs_model:
        steps["write text"] = text_bytes(source, base, TEXT)
        steps |= _walk(source, calls)
    if ROUNDINGS[rounding].needs_gradients:
        steps["take gradients"] = _gradients(source, calls)
        steps["round a layer"] += max((_coupling(unit, calls) for unit in _coupled(source)), default=0)
    if ROUNDINGS[rounding].tunes:
        steps["tune"] = _tuning(source, steps["take gradients"])
    return {name: PROCESSES_BYTES + nbytes for name, nbytes in steps.items()}


def matrices_per_token(source: Source) -> dict[str, int]:
    """The number of its matrices that one token is multiplied with, by the path of each unit.

    Those of a model that cannot be traced are all of them.
    """
    try:
        shares = active_experts(source)
    except MintError:
        shares = {}
    return {unit.path: ceil(shares.get(unit.path, 1.0) * unit.slices) for unit in source.units}


def _writing(source: Source, unit: Unit) -> int:
    """Bytes to measure a unit, or to pack it while the one before is written."""
    if may_come_in_blocks(source, unit):
        return held_bytes(source, unit) + backend().working_bytes(BLOCK)
    return 3 * unit.nbytes + backend().working_bytes(unit.size)


def _verifying(source: Source, unit: Unit, calls: int) -> int:
    """Bytes to compare a unit with its original, and its product with that of its dequantized weight."""
    if not comes_in_blocks(source, unit):
        return 4 * unit.nbytes
    named = min(unit.slices, calls * LENGTH) * unit.size // unit.slices
    return held_bytes(source, unit) + 2 * named * WIDE


def check_memory(source: Source, rounding: str, memory: int) -> None:
    """Raise `MintError` if a request cannot keep to so many bytes of memory."""
    base = min(BASES_OF_TEXT, key=lambda base: text_bytes(source, base, TEXT))
    steps = needed_memory(source, rounding, base)
    step, needed = max(steps.items(), key=lambda item: item[1])
    if needed > memory:
        raise MintError(
            f"--memory {format_size(memory)} is too little: to {step} takes up to {enough_size(needed)}, and "
            f"{source.folder.name} cannot be made with less. Needed: --memory {enough_size(needed)}, "
            "or --rounding nearest"
        )


def gradient_bytes(source: Source) -> int:
    """Bytes of the file of gradients."""
    calls = matrices_per_token(source)
    rows = sum(unit.shape[-2] * calls[unit.path] for unit in _coupled(source))
    return TRAINING * CALIBRATION.window * rows * BYTES


def _coupled(source: Source) -> list[Unit]:
    return [unit for unit in source.units if unit.layer >= 0 and unit.shape[-2] <= MOST_ROWS and unit.role != TOWER]


def _coupling(unit: Unit, calls: Mapping[str, int]) -> int:
    """Bytes to couple the rows of a unit: its gradients and their moments, then the values of a matrix."""
    rows = unit.shape[-2]
    gradients = TRAINING * CALIBRATION.window * calls[unit.path] * rows * WIDE
    return max(rows * rows * _MOMENTS + 2 * gradients, rows * rows * WIDE + 2 * WIDE * unit.size // unit.slices)


def _gradients(source: Source, calls: Mapping[str, int]) -> int:
    """The whole model, what a pass back through it needs of a block of sequences, and the block's logits."""
    tokens = max(LOGITS // source.vocabulary, CALIBRATION.window)
    kept = sum((2 * unit.shape[-1] + 4 * unit.shape[-2]) * calls[unit.path] for unit in _coupled(source))
    weights = sum(unit.size for unit in source.units) * WIDE + sum(2 * row.nbytes for row in source.parameters)
    return weights + tokens * (kept * WIDE + source.vocabulary * _COMPARED)


def _tuning(source: Source, gradients: int) -> int:
    """Bytes that gradients at outputs take, the codes of all weights, and the gradients of the weights of a layer."""
    layers: dict[str, int] = defaultdict(int)
    for unit in source.units:
        layers[layer_path(unit.path) if unit.layer >= 0 else unit.path] += unit.size
    return gradients + sum(layers.values()) + 2 * WIDE * max(layers.values(), default=0)


def _walk(source: Source, calls: Mapping[str, int]) -> dict[str, int]:
    """The steps of a walk through the model."""
    units = [unit for unit in source.units if unit.role != TOWER]
    heads = [unit for unit in units if unit.role == "head"]
    outside = [unit for unit in units if unit.layer < 0 and unit not in heads]
    tables = [unit for unit in units if unit.role in ("head", "embedding")]
    width = max((unit.shape[-1] for unit in tables), default=0)
    answers = TEXT.count * TEXT.window * width * WIDE
    between = 2 * answers  # of a layer, old and new
    outer = sum(unit.size for unit in outside) * WIDE + sum(parameter.nbytes * 2 for parameter in source.parameters)
    layers: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if unit.layer >= 0:
            layers[layer_path(unit.path)].append(unit)
    packed = {unit.path: _packing(source, unit) for unit in units}
    layer = max((_layer(units, packed, calls) for units in layers.values()), default=0)
    table = max((_rounding([unit], packed, calls) for unit in heads or outside if unit in tables), default=0)
    logits = max(LOGITS, source.vocabulary * TEXT.window) * _COMPARED
    head = sum(unit.size for unit in heads) * WIDE
    beside = outer + 3 * answers  # the original, its answers, and what those of a layer lack
    return {
        "round a layer": outer + between + beside + layer,
        "round the head": outer + between + beside + table,
        "measure the closeness": outer + head + between + logits,
    }


def _layer(units: Sequence[Unit], packed: Mapping[str, int], calls: Mapping[str, int]) -> int:
    """Bytes to round the units of a layer: its weights, the activations of a block of sequences, and the rounding."""
    activations = sum(ROWS * calls[unit.path] * (unit.shape[-2] + 2 * unit.shape[-1]) * WIDE for unit in units)
    return sum(unit.size for unit in units) * WIDE + activations + _rounding(units, packed, calls)


def _rounding(units: Sequence[Unit], packed: Mapping[str, int], calls: Mapping[str, int]) -> int:
    """Bytes of the inputs of units that are rounded together, and of the work on the largest of them."""
    inputs = factors = working = 0
    for unit in units:
        columns = unit.shape[-1]
        if unit.role not in SHARED:
            inputs += CALIBRATION.count * CALIBRATION.window * calls[unit.path] * columns * WIDE
            factors += 2 * columns * columns * WIDE
        block = min(unit.size // unit.slices, WEIGHTS) * _PACKING
        working = max(working, columns * columns * _MOMENTS, block + unit.size * WIDE)
    return 2 * inputs + factors + working + max(packed[unit.path] for unit in units)


def _packing(source: Source, unit: Unit) -> int:
    """Bytes of the weight of a unit and of its packed parts, while it is packed; those of blocks are in a file."""
    return held_bytes(source, unit) if comes_in_blocks(source, unit) else int(_WHOLE * unit.nbytes)
