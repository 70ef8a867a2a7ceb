"""A plan as a file for `llama-quantize --tensor-type-file`: a line per tensor, PATTERN=TYPE.

llama.cpp has other formats than MLX, so a unit gets the type of as many bits. It searches for the pattern in the names
of its tensors, in lower case.
"""

import re

from mint.core.errors import MintError
from mint.formats.format import KEEP, Format
from mint.model.gguf.names import tensor_names
from mint.plan.plan import Plan

# by bits of a format: a type in blocks of 256 columns, and one in blocks of 32 for rows that 256 does not divide
_TYPES = {
    2: ("q2_k", "q4_0"),
    3: ("q3_k", "q4_0"),
    4: ("q4_k", "q4_1"),
    5: ("q5_k", "q5_1"),
    6: ("q6_k", "q8_0"),
    8: ("q8_0", "q8_0"),
}
_OWN = ("mxfp4", "nvfp4")  # types that llama.cpp has under MLX's names
_KEPT = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_SUPER_BLOCK = 256


def tensor_types(plan: Plan) -> tuple[str, tuple[str, ...]]:
    """The text of the file, and the units that llama.cpp has no name for; `MintError` if it does not know the model."""
    names = tensor_names(plan.model_type, [choice.path for choice in plan.choices])
    lines = [
        f"^{re.escape(names[choice.path])}$={_type(choice.format, choice.dtype, choice.shape[-1])}"
        for choice in plan.choices
        if choice.path in names
    ]
    if not lines:
        raise MintError(f"llama.cpp has no name for any tensor of a model of type {plan.model_type}")
    return "\n".join(lines) + "\n", tuple(c.path for c in plan.choices if c.path not in names)


def _type(format: Format, dtype: str, columns: int) -> str:
    """The type of llama.cpp with as many bits as a format."""
    if format == KEEP:
        return _KEPT[dtype]
    if format.mode in _OWN:
        return format.mode
    return _TYPES[format.bits][columns % _SUPER_BLOCK != 0]
