"""gpt-oss in bf16, as the hub has it: experts with inputs before outputs, under names without `.weight`.

`experts.gate_up_proj` is (E, C, R), with rows of gate and up alternating, beside `experts.gate_up_proj_bias` (E, R);
`experts.down_proj` likewise. The model's class takes (E, R, C), as the MXFP4 release has them.
"""

import mlx.core as mx

from mint.model.checkpoint.shards import SourceTensor
from mint.model.storages.storage import Arrays, Checkpoint, Encoded, Storage

_NAMES = ("gate_up_proj", "down_proj")


def match(tensor: SourceTensor, checkpoint: Checkpoint) -> Encoded | None:
    """A stack of experts whose last axis is that of its biases."""
    experts, _, name = tensor.name.rpartition(".")
    bias = checkpoint.first(f"{tensor.name}_bias")
    if name not in _NAMES or len(tensor.shape) != 3 or not bias or not experts.endswith("experts"):
        return None
    count, columns, rows = tensor.shape
    if bias.shape != (count, rows) or tensor.dtype not in ("BF16", "F16", "F32"):
        return None
    return Encoded("transposed", f"{tensor.name}.weight", (count, rows, columns), {"weight": tensor})


def _decode(_: Encoded, parts: Arrays, __: mx.Dtype) -> mx.array:
    return parts["weight"].swapaxes(-1, -2)


TRANSPOSED = Storage("transposed", "the experts of gpt-oss in bf16", match, _decode, stacks=True)
