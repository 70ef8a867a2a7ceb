"""Memory of a device for weights: its working set, less the cache of a context, less a reserve."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError
from mint.core.sizes import enough_size, format_size
from mint.model.kv_memory import STEP, ContextMemory
from mint.plan.size_range import format_bytes
from mint.targets.devices import Device, devices

if TYPE_CHECKING:
    from mint.model.source import Source
    from mint.plan.problem import Problem
    from mint.plan.recipe import Room

_MOST_STEPS = 1 << 16


@dataclass(frozen=True, slots=True)
class Placed:
    """A device on the curve of a model: the budget that it leaves, or None."""

    device: Device
    budget_bytes: int | None
    verdict: str  # fits, holds the largest plan, or too small


def placed(problem: Problem, device: Device, room: Room) -> Placed:
    """The budget that a device leaves beside `room`, at most the size of the largest plan."""
    cache = problem.analysis.context.nbytes(room.tokens, room.kv_bits)
    nbytes = device.working_set_bytes - cache - room.reserve_bytes
    if nbytes < problem.smallest_bytes:
        return Placed(device, None, "too small")
    if nbytes > problem.largest_bytes:
        return Placed(device, problem.largest_bytes, "holds the largest plan")
    return Placed(device, nbytes, "fits")


def devices_on(problem: Problem, room: Room) -> list[Placed]:
    """Every device of the table with the budget that it leaves beside `room`."""
    return [placed(problem, device, room) for device in devices()]


def room_for_weights(problem: Problem, device: Device, room: Room) -> int:
    """Bytes of weights that fit the device beside `room`; `MintError` naming the longest context that fits."""
    nbytes = placed(problem, device, room).budget_bytes
    if nbytes is None:
        raise MintError(_too_long(problem, device, room))
    return nbytes


def fit_rows(source: Source, device: Device, room: Room) -> list[dict[str, Any]]:
    """Models of a source by their formats, from its headers: sizes, and the longest context on a device.

    A context is never longer than the model's config allows. Raises `MintError` for a model that cannot be traced.
    """
    from mint.model.config import context_limit
    from mint.model.kv_trace import context_memory  # imports mlx_lm, which planning does without

    context = context_memory(source)
    limit = context_limit(source.config)
    weights = sum(unit.size for unit in source.units) + sum(prod(parameter.shape) for parameter in source.parameters)
    rows = []
    for name, nbytes in format_bytes(source.units, source.parameters).items():
        tokens = longest_context(context, device.working_set_bytes - room.reserve_bytes - nbytes, room)
        verdict = (
            "fits" if tokens >= room.tokens else f"needs a context below {room.context}" if tokens else "too large"
        )
        row = {"device": device.name, "formats": name, "nbytes": nbytes}
        longest = min(tokens, limit or tokens)
        rows.append(row | {"bpw": round(8 * nbytes / weights, 2), "longest_context": longest, "verdict": verdict})
    return rows


def longest_context(context: ContextMemory, nbytes: int, room: Room) -> int:
    """The most tokens whose cache takes at most `nbytes`; 0 if none fits."""
    steps = range(1, _MOST_STEPS + 1)  # the cache grows by steps
    return STEP * bisect_right(steps, nbytes, key=lambda step: context.nbytes(step * STEP, room.kv_bits))


def _too_long(problem: Problem, device: Device, room: Room) -> str:
    context, left = problem.analysis.context, device.working_set_bytes - room.reserve_bytes - problem.smallest_bytes
    longest = longest_context(context, left, room)
    sizes = (
        f"{device.name} has {format_size(device.working_set_bytes)} for the GPU; a context of {room.tokens} tokens "
        f"takes {enough_size(context.nbytes(room.tokens, room.kv_bits))}, the reserve "
        f"{format_size(room.reserve_bytes)}, the smallest plan {enough_size(problem.smallest_bytes)}. "
    )
    if not longest:
        return sizes + "The model does not fit this device: choose a larger one, or relax the rules"
    quantized = "" if room.kv_bits or context.obstacle else ", or quantize the cache with --kv-bits 8"
    return sizes + f"Longest context that fits: {longest} tokens; give a shorter --context{quantized}"
