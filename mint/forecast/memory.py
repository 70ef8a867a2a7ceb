"""The memory that a request takes at most, by arithmetic on the headers: an upper bound of the peak of all processes.

Compensation holds one of these at a time, each named by its step: the model that writes the text; the original, one
layer after the other; one layer or the head of the result with its inputs, and what one unit takes to be rounded; the
logits of a block of sequences. `Walk` and `compensate` keep to it.
"""

# T tokens, C columns, V vocabulary

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mint.analysis.probes.own_text import BASES_OF_TEXT, WIDE, text_bytes
from mint.assembly.layer_inputs import LOGITS, ROWS, WEIGHTS
from mint.core.errors import MintError
from mint.core.memory import PROCESSES_BYTES
from mint.core.sizes import format_size
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.model.roles import TOWER, layer_path
from mint.model.source import Source
from mint.quality.sequences import CALIBRATION, JUDGED, TextSize
from mint.run.stacks import BLOCK, comes_in_blocks, held_bytes

_MOMENTS = 24  # bytes for each of C^2 second moments while they are factored
_PACKING = 12  # for each weight of a block that is compensated
_WHOLE = 2.3  # times the bytes of a unit: its weight, and its packed parts before and after they are joined
_COMPARED = 16  # for each logit of a block
SHARED = ("k", "v", "up", "expert_up")  # roles whose inputs are also those of another unit
TEXT = TextSize(CALIBRATION.count + JUDGED, CALIBRATION.window)


def needed_memory(source: Source, rounding: str, base: str) -> dict[str, int]:
    """Bytes of each step at most; `base` is that of the model that writes the text of a compensation."""
    largest = max((held_bytes(source, unit) for unit in source.units), default=0)
    sizes = (BLOCK if comes_in_blocks(source, unit) else unit.size for unit in source.units)
    working = backend().working_bytes(max(sizes, default=0))
    steps = {"measure and write": 3 * largest + working, "verify": 4 * largest}
    if ROUNDINGS[rounding].needs_model:
        steps["write text"] = text_bytes(source, base, TEXT)
        steps |= _walk(source)
    return {name: PROCESSES_BYTES + nbytes for name, nbytes in steps.items()}


def check_memory(source: Source, rounding: str, memory: int) -> None:
    """Raise `MintError` if a request cannot keep to so many bytes of memory."""
    bases = BASES_OF_TEXT
    steps = min((needed_memory(source, rounding, base) for base in bases), key=lambda needs: max(needs.values()))
    step, needed = max(steps.items(), key=lambda item: item[1])
    if needed > memory:
        raise MintError(
            f"--memory {format_size(memory)} is too little: to {step} takes up to {format_size(needed)}, and "
            f"{source.folder.name} cannot be made with less. Needed: --memory {format_size(needed)}, "
            "or --rounding nearest"
        )


def _walk(source: Source) -> dict[str, int]:
    """The steps of a walk through the model."""
    units = [unit for unit in source.units if unit.role != TOWER]
    heads = [unit for unit in units if unit.role == "head"]
    outside = [unit for unit in units if unit.layer < 0 and unit not in heads]
    tables = [unit for unit in units if unit.role in ("head", "embedding")]
    width = max((unit.shape[-1] for unit in tables), default=0)
    between = 2 * TEXT.count * TEXT.window * width * WIDE  # the answers of a layer, old and new
    outer = sum(unit.size for unit in outside) * WIDE + sum(parameter.nbytes * 2 for parameter in source.parameters)
    layers: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if unit.layer >= 0:
            layers[layer_path(unit.path)].append(unit)
    experts = _experts_per_token(source.config)
    layer = max((_layer(units, experts) for units in layers.values()), default=0)
    table = max((_rounding([unit], 1) for unit in heads or outside if unit in tables), default=0)
    logits = max(LOGITS, source.vocabulary * TEXT.window) * _COMPARED
    head = sum(unit.size for unit in heads) * WIDE
    return {
        "round a layer": outer + between + layer,
        "round the head": outer + between + table,
        "measure the closeness": outer + head + between + logits,
    }


def _layer(units: Sequence[Unit], experts: int) -> int:
    """Bytes to round the units of a layer: its weights, the activations of a block of sequences, and the rounding."""
    activations = 0
    for unit in units:
        activations += ROWS * (experts if unit.slices > 1 else 1) * (unit.shape[-2] + 2 * unit.shape[-1]) * WIDE
    return sum(unit.size for unit in units) * WIDE + activations + _rounding(units, experts)


def _rounding(units: Sequence[Unit], experts: int) -> int:
    """Bytes of the inputs of units that are rounded together, and of the work on the largest of them."""
    inputs = factors = working = 0
    for unit in units:
        columns, calls = unit.shape[-1], experts if unit.slices > 1 else 1
        if unit.role not in SHARED:
            inputs += CALIBRATION.count * CALIBRATION.window * calls * columns * WIDE
            factors += 2 * columns * columns * WIDE
        block = min(unit.size // unit.slices, WEIGHTS) * _PACKING
        working = max(working, columns * columns * _MOMENTS, block + unit.size * WIDE)
    whole = max(unit.nbytes for unit in units)
    return 2 * inputs + factors + working + int(_WHOLE * whole)


def _experts_per_token(config: Mapping[str, object]) -> int:
    """The largest number of experts that a token goes to, by the config; 1 for other models."""
    names = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")
    text = config.get("text_config")
    settings = {**config, **text} if isinstance(text, Mapping) else config
    counts = [value for name in names if isinstance(value := settings.get(name), int)]
    return max(counts, default=1 if not any("expert" in name for name in settings) else 8)
