"""The states of a job, and the only ways from one to another, as a table."""

QUEUED, INVENTORY, ANALYZING, PROBING, SOLVING = "queued", "inventory", "analyzing", "probing", "solving"
ASSEMBLING, VERIFYING, DONE, FAILED, CANCELLED, BLOCKED = (
    "assembling", "verifying", "done", "failed", "cancelled", "blocked",
)  # fmt: skip

# of a job whose runner holds a lease; from each it may also fail, be cancelled, be blocked or go back to the queue
ACTIVE = (INVENTORY, ANALYZING, PROBING, SOLVING, ASSEMBLING, VERIFYING)
FINAL = (DONE, FAILED, CANCELLED)

_FORWARD: dict[str, tuple[str, ...]] = {
    QUEUED: (INVENTORY, CANCELLED, FAILED),
    INVENTORY: (ANALYZING,),
    ANALYZING: (PROBING, SOLVING, DONE),  # done: only an analysis was asked for
    PROBING: (SOLVING, DONE),
    SOLVING: (ASSEMBLING,),
    ASSEMBLING: (VERIFYING,),
    VERIFYING: (DONE,),
    BLOCKED: (QUEUED, CANCELLED, FAILED),
}

TRANSITIONS: dict[str, tuple[str, ...]] = {
    state: (*_FORWARD.get(state, ()), *((QUEUED, BLOCKED, FAILED, CANCELLED) if state in ACTIVE else ()))
    for state in (QUEUED, *ACTIVE, BLOCKED, *FINAL)
}


def can_become(state: str, to: str) -> bool:
    """Whether a job may go from `state` to `to` in one step."""
    return to in TRANSITIONS[state]
