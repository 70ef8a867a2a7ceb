"""Reserves space in the store for a job before it writes, so that all jobs together stay below --max-store.

Rule. Stored and reserved bytes never exceed the limit. So the space is freed at once: an artifact that may be evicted
now may be held by a download when the job is done.
"""

from pathlib import Path

from cluster.service.data.records import Claim
from cluster.service.queue.queue import Queue
from cluster.service.store.store import Store
from mint.core.errors import DiskFullError

OUTPUT = "model"  # output folder of a job; a partial folder has this prefix


def reserve_space(queue: Queue, claim: Claim, store: Store, need: int, work: Path, *, written: int) -> None:
    """Reserve `need` bytes of the store for a job, `written` of which are in `work`; raises `DiskFullError`.

    The reservation ends when the job is done or waits.
    """
    shortage = queue.reserve(claim, need, lambda others: store.shortage(need, work, written=written, reserved=others))
    if not shortage:
        store.evict(queue.reserved_bytes())
        if store.excess(queue.reserved_bytes()):  # a download just began to hold an evictable artifact
            shortage = store.shortage(need, work, written=written, reserved=queue.reserved_bytes() - need)
    if shortage:
        raise DiskFullError(shortage)


def holder_of(claim: Claim) -> str:
    """The holder name under which a job holds its artifacts until it is done."""
    return f"job-{claim.job.id}"


def written_bytes(folder: Path) -> int:
    """Bytes on disk of the model that a job writes in `folder`, without the earlier results beside it."""
    nbytes = 0
    for path in folder.glob(f"{OUTPUT}*/*"):
        try:
            nbytes += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # being renamed or removed
    return nbytes
