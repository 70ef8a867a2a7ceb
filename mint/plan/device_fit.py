"""Memory of a device for weights: its working set, less the cache of a context, less a reserve."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.model.kv_memory import STEP
from mint.targets.devices import Device, devices

if TYPE_CHECKING:
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


def _too_long(problem: Problem, device: Device, room: Room) -> str:
    context, left = problem.analysis.context, device.working_set_bytes - room.reserve_bytes - problem.smallest_bytes
    steps = range(1, _MOST_STEPS + 1)  # the cache grows by steps
    longest = STEP * bisect_right(steps, left, key=lambda step: context.nbytes(step * STEP, room.kv_bits))
    sizes = (
        f"{device.name} has {format_size(device.working_set_bytes)} for the GPU; a context of {room.tokens} tokens "
        f"takes {format_size(context.nbytes(room.tokens, room.kv_bits))}, the reserve "
        f"{format_size(room.reserve_bytes)}, the smallest plan {format_size(problem.smallest_bytes)}. "
    )
    if not longest:
        return sizes + "The model does not fit this device: choose a larger one, or relax the rules"
    quantized = "" if room.kv_bits or context.obstacle else ", or quantize the cache with --kv-bits 8"
    return sizes + f"Longest context that fits: {longest} tokens; give a shorter --context{quantized}"
