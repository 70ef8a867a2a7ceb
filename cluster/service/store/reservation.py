"""Room for what a job is going to store: taken before it writes, so that all together stay below --max-store.

Rule. What is stored and what is reserved are never more than the limit. So the room is made at once: what may be
evicted now may be held by a download when the job is done.
"""

from pathlib import Path

from cluster.service.data.records import Claim
from cluster.service.queue.queue import Queue
from cluster.service.store.store import Store
from mint.core.errors import DiskFullError

OUTPUT = "model"  # the folder that a job writes, and before it is whole the beginning of its name


def take_room(queue: Queue, claim: Claim, store: Store, need: int, work: Path, *, written: int) -> None:
    """Reserve `need` bytes of the store for a job, `written` of which lie in `work`.

    Raises `DiskFullError` with the reason. What was reserved is given back when the job is done, or waits.
    """
    why = queue.reserve(claim, need, lambda others: store.lacks(need, work, written=written, reserved=others))
    if not why:
        store.evict(queue.reserved())
        if store.over(queue.reserved()):  # somebody just began to download what was to go
            why = store.lacks(need, work, written=written, reserved=queue.reserved() - need)
    if why:
        raise DiskFullError(why)


def holder_of(claim: Claim) -> str:
    """Who holds what a job has stored until it is done: its room is kept till then, and others would take the rest."""
    return f"job-{claim.job.id}"


def written_bytes(folder: Path) -> int:
    """Bytes on the disk of the model that a job writes in `folder`; results that it takes units from lie beside it."""
    found = 0
    for path in folder.glob(f"{OUTPUT}*/*"):
        try:
            found += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # being renamed or removed
    return found
