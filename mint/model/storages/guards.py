"""Laws for the tensors of every architecture: none is read as numbers that it does not hold.

A parameter that the model's class declares as a float depends on no integer or FP8 tensor that was not decoded. No
scale of a weight that is used is left out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mint.core.errors import MintError
from mint.model.checkpoint.shards import Shard, SourceTensor, tensors_of
from mint.model.storages.decoding import STORAGES, Stored
from mint.model.storages.storage import GGUF

_FLOATS = ("BF16", "F16", "F32", "F64", "C64", "BOOL")  # a mask counts as numbers
# a scale or zero point of the weight that has the rest of the name
_SCALE = re.compile(
    r"^(?P<module>.+?)[._](?:weight_|q)?(?:scales?|scales?_inv|zeros?|zero_points?|scb|absmax|global_scale|g_idx)(?:_\d)?$",
    re.IGNORECASE,
)


def check_used(
    folder: Path,
    stored: Stored,
    tensors: Mapping[str, SourceTensor],
    sources: Mapping[str, Sequence[str]],
    integers: Iterable[str],
) -> tuple[str, ...]:
    """Check the parameters with their source tensors; the class of the model declares `integers` as integers.

    Returns what a user should know about the storage, a sentence each. Raises `MintError` for an encoded tensor that no
    storage decodes, and for a scale that nothing uses.
    """
    allowed = frozenset(integers)
    decoded = stored.parts
    for name, feeders in sources.items():
        for tensor in (tensors[feeder] for feeder in feeders):
            is_fp8 = tensor.dtype.startswith("F8")
            if tensor.name not in decoded and (is_fp8 or (tensor.dtype not in _FLOATS and name not in allowed)):
                raise MintError(f"{folder}: {_undecoded(tensor, tensors)}: {name} would be made of its raw codes")
    _check_scales(folder, stored, tensors, {feeder for feeders in sources.values() for feeder in feeders})
    return _notices(stored)


def _notices(stored: Stored) -> tuple[str, ...]:
    notices = []
    if stored.settings.method not in ("", GGUF) and not stored.encoded:
        dropped = f"the config's quantization_config ({stored.settings.method}) is dropped"
        notices.append(f"{dropped}: no weight is stored in such a way")
    if bare := sum(weight.is_bare for weight in stored.encoded.values()):
        notices.append(f"{bare} FP8 weights are taken as they are stored: the checkpoint has no scales")
    titles = (STORAGES[weight.storage].title for weight in stored.encoded.values() if not weight.is_bare)
    if kinds := Counter(titles):
        weights = ", ".join(f"{count} weights of {title}" for title, count in kinds.items())
        notices.append(f"{weights} are decoded to floats, and quantized again")
    return tuple(notices)


def undecoded_of(stored: Stored, shards: Iterable[Shard]) -> str:
    """A sentence about the first matrix that no storage decodes; empty if there is none."""
    tensors = tensors_of(shards)
    parts = stored.parts
    codes = (tensor for tensor in tensors.values() if tensor.dtype not in _FLOATS and len(tensor.shape) > 1)
    return next((_undecoded(tensor, tensors) for tensor in codes if tensor.name not in parts), "")


def _undecoded(tensor: SourceTensor, tensors: Mapping[str, SourceTensor]) -> str:
    """A sentence about a tensor that no storage decodes, with the tensors beside it."""
    module = tensor.name.rpartition(".")[0]
    kin = [other for other in tensors.values() if other.name.startswith(f"{module}.")][:6] or [tensor]
    parts = ", ".join(f"{other.name.removeprefix(f'{module}.')} {other.dtype} {list(other.shape)}" for other in kin)
    known = ", ".join(storage.title for storage in STORAGES.values())
    return (
        f"tensor {tensor.name} is encoded in a way that mint does not decode (beside it: {parts}); needed: plain "
        f"weights, or {known}. Start from the unquantized model"
    )


def _check_scales(folder: Path, stored: Stored, tensors: Mapping[str, SourceTensor], used: set[str]) -> None:
    consumed = stored.parts.keys() | stored.runtime | used
    for tensor in tensors.values():
        match = None if tensor.name in consumed else _SCALE.match(tensor.name)
        weights = match and [name for name in (match["module"], f"{match['module']}.weight") if name in used]
        if weights:
            fault = (
                f"tensor {tensor.name} {tensor.dtype} {list(tensor.shape)} is a scale of {weights[0]}, and no storage"
            )
            raise MintError(f"{folder}: {fault} uses it; needed: the unquantized model, or a storage that mint decodes")
