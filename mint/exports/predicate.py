"""A plan as a Python file for `mlx_lm.convert(quant_predicate=...)`, or mlx_vlm's; the file needs no mint.

The converter rounds to nearest. So its tensors are those of a plan with rounding nearest, byte by byte; those of other
roundings have the same formats and sizes, and other values.
"""

from collections import Counter
from typing import Any

from mint.formats.format import KEEP
from mint.plan.plan import Plan

_FILE = '''"""Formats of the MINT plan {digest}: {bits:.2f} bits per weight, {nbytes} bytes of weights.

    python {name} MODEL OUTPUT

or from Python:

    from {loader} import convert
    from {module} import CONVERT

    convert("MODEL", "OUTPUT", **CONVERT)
"""

FORMATS = {{
{formats}
}}


def quant_predicate(path, module, *_):
    """The arguments of `to_quantized` for the module at `path`; False keeps it as it is."""
    if path not in FORMATS:
        raise ValueError(f"{{path}}: not in the plan; needed: the model that the plan was made for")
    return FORMATS[path]


CONVERT = {{
{arguments}
    "quant_predicate": quant_predicate,
}}

if __name__ == "__main__":
    import sys

    from {loader} import convert

    convert(*sys.argv[1:3], **CONVERT)
'''


def predicate_text(plan: Plan, name: str) -> str:
    """The text of the Python file `name` for the converter of the plan's loader."""
    formats = [f'    "{choice.path}": {choice.format.config()!r},' for choice in plan.choices]
    return _FILE.format(
        digest=plan.digest[:16],
        bits=plan.bits_per_weight,
        nbytes=plan.planned_bytes,
        name=name,
        module=name.removesuffix(".py"),
        loader=plan.loader,
        formats="\n".join(formats),
        arguments="\n".join(f'    "{key}": {value!r},' for key, value in _arguments(plan).items()),
    )


def _arguments(plan: Plan) -> dict[str, Any]:
    """The other arguments of the converter, which skips modules whose rows `q_group_size` does not divide."""
    used = Counter(choice.format for choice in plan.choices if choice.format != KEEP)
    if not used:
        return {"quantize": False, "dtype": plan.dtype or None}
    smallest = min(format.group_size for format in used)
    default = max((f for f in used if f.group_size == smallest), key=lambda format: (used[format], format))
    arguments = {f"q_{name}": value for name, value in default.parameters().items()}
    return {"quantize": True, **arguments, "dtype": plan.dtype or None}
