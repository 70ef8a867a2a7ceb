"""Memory of a device for weights: its working set, less the cache of a context, less a reserve."""

from __future__ import annotations

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


def room_for_weights(problem: Problem, device: Device, room: Room) -> int:
    """Bytes of weights that fit the device beside `room`; `MintError` naming the longest context that fits.

    A device that could hold more than the largest plan gets that plan's size.
    """
    nbytes = _left(problem, device, room)
    if nbytes < problem.smallest_bytes:
        raise MintError(_too_long(problem, device, room))
    return min(nbytes, problem.largest_bytes)


def _left(problem: Problem, device: Device, room: Room) -> int:
    cache = problem.analysis.context.nbytes(room.tokens, room.kv_bits)
    return device.working_set_bytes - cache - room.reserve_bytes


def longest_context(problem: Problem, device: Device, room: Room) -> int:
    """The most tokens that fit the device beside the smallest plan, in steps of the cache; 0 if not even one step.

    The cache and the reserve are those of `room`, whatever its context.
    """
    memory = problem.analysis.context
    left = device.working_set_bytes - room.reserve_bytes - problem.smallest_bytes
    low, high = 0, _MOST_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        if memory.nbytes(middle * STEP, room.kv_bits) <= left:
            low = middle
        else:
            high = middle - 1
    return low * STEP


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a device lies on the curve: the budget it leaves, or why it leaves none."""

    device: Device
    budget_bytes: int | None
    verdict: str  # fits, holds the largest plan, or too small


def devices_on(problem: Problem, room: Room) -> list[Placed]:
    """Every device of the table with what it leaves for weights beside `room`."""
    placed = []
    for device in devices():
        nbytes = _left(problem, device, room)
        if nbytes < problem.smallest_bytes:
            placed.append(Placed(device, None, "too small"))
        elif nbytes > problem.largest_bytes:
            placed.append(Placed(device, problem.largest_bytes, "holds the largest plan"))
        else:
            placed.append(Placed(device, nbytes, "fits"))
    return placed


def _too_long(problem: Problem, device: Device, room: Room) -> str:
    context = problem.analysis.context
    longest = longest_context(problem, device, room)
    sizes = (
        f"{device.name} has {format_size(device.working_set_bytes)} for the GPU; a context of {room.tokens} tokens "
        f"takes {format_size(context.nbytes(room.tokens, room.kv_bits))}, the reserve "
        f"{format_size(room.reserve_bytes)}, the smallest plan {format_size(problem.smallest_bytes)}. "
    )
    if not longest:
        return sizes + "The model does not fit this device: choose a larger one, or relax the rules"
    quantized = "" if room.kv_bits or context.obstacle else ", or quantize the cache with --kv-bits 8"
    return sizes + f"Longest context that fits: {longest} tokens; give a shorter --context{quantized}"
