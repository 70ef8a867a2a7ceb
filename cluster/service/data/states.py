"""The states of a job, and a table of all transitions."""

QUEUED, INVENTORY, ANALYZING, PROBING, SOLVING = "queued", "inventory", "analyzing", "probing", "solving"
ASSEMBLING, VERIFYING, DONE, FAILED, CANCELLED, BLOCKED, PAUSED = (
    "assembling", "verifying", "done", "failed", "cancelled", "blocked", "paused",
)  # fmt: skip

# states under a lease; from each a job may also fail, be cancelled, be blocked, be paused or return to the queue
ACTIVE = (INVENTORY, ANALYZING, PROBING, SOLVING, ASSEMBLING, VERIFYING)
FINAL = (DONE, FAILED, CANCELLED)
WAITING = (QUEUED, BLOCKED, PAUSED)

# names for several states
GROUPS = {"running": ACTIVE, "waiting": WAITING, "ended": FINAL}

_FORWARD: dict[str, tuple[str, ...]] = {
    QUEUED: (INVENTORY, PAUSED, CANCELLED, FAILED),
    INVENTORY: (ANALYZING,),
    ANALYZING: (PROBING, SOLVING, DONE),  # done: the request is for an analysis only
    PROBING: (SOLVING, DONE),
    SOLVING: (ASSEMBLING,),
    ASSEMBLING: (VERIFYING,),
    VERIFYING: (DONE,),
    BLOCKED: (QUEUED, PAUSED, CANCELLED, FAILED),
    PAUSED: (QUEUED, CANCELLED, FAILED),
}


def can_become(state: str, to: str) -> bool:
    """True if a job may go from `state` to `to` in one step."""
    return to in _FORWARD.get(state, ()) or (state in ACTIVE and to in (*WAITING, FAILED, CANCELLED))
