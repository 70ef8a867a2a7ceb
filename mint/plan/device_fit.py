"""What a device leaves for weights: its working set, less the cache of a context, less a reserve."""

from dataclasses import dataclass

from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.model.kv_memory import STEP
from mint.plan.problem import Problem
from mint.targets.devices import DEVICES, Device


def room_for_weights(
    problem: Problem, device: Device, *, tokens: int, kv_bits: int | None = None, reserve_bytes: int = 0
) -> int:
    """Bytes of weights that fit the device beside a context of `tokens`; `MintError` naming the longest that does.

    A device that could hold more than the largest plan gets that plan's size.
    """
    memory = problem.analysis.context
    cache = memory.nbytes(tokens, kv_bits)
    room = device.working_set_bytes - cache - reserve_bytes
    if room < problem.smallest_bytes:
        raise MintError(_too_long(problem, device, tokens, kv_bits, reserve_bytes, cache))
    return min(room, problem.largest_bytes)


def longest_context(problem: Problem, device: Device, *, kv_bits: int | None = None, reserve_bytes: int = 0) -> int:
    """The most tokens that fit the device beside the smallest plan, in steps of the cache; 0 if not even one step."""
    memory = problem.analysis.context
    room = device.working_set_bytes - reserve_bytes - problem.smallest_bytes
    low, high = 0, _MOST_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        if memory.nbytes(middle * STEP, kv_bits) <= room:
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


def devices_on(problem: Problem, *, tokens: int, reserve_bytes: int) -> list[Placed]:
    """Every device of the table with what it leaves for weights beside a context of `tokens`."""
    cache = problem.analysis.context.nbytes(tokens)
    placed = []
    for device in DEVICES:
        room = device.working_set_bytes - cache - reserve_bytes
        if room < problem.smallest_bytes:
            placed.append(Placed(device, None, "too small"))
        elif room > problem.largest_bytes:
            placed.append(Placed(device, problem.largest_bytes, "holds the largest plan"))
        else:
            placed.append(Placed(device, room, "fits"))
    return placed


_MOST_STEPS = 1 << 16


def _too_long(
    problem: Problem, device: Device, tokens: int, kv_bits: int | None, reserve_bytes: int, cache: int
) -> str:
    longest = longest_context(problem, device, kv_bits=kv_bits, reserve_bytes=reserve_bytes)
    found = (
        f"{device.name} has {format_size(device.working_set_bytes)} for the GPU; a context of {tokens} tokens takes "
        f"{format_size(cache)}, the reserve {format_size(reserve_bytes)}, the smallest plan "
        f"{format_size(problem.smallest_bytes)}. "
    )
    if not longest:
        return found + "The model does not fit this device: choose a larger one, or relax the rules"
    quantized = "" if kv_bits or problem.analysis.context.obstacle else ", or quantize the cache with --kv-bits 8"
    return found + f"Longest context that fits: {longest} tokens; give a shorter --context{quantized}"
