"""One job in a process of its own: `python -m cluster.service.work.runner --data DIR --job ID --root FOLDER ...`.

On standard input comes a line of JSON: the address of the database and the lease, which must not be seen in a list of
processes. Without --job it imports what any job needs, and waits for that line to name its job too. It leads its own
process group, is the only writer of the job's events while it holds the lease, and dies with it. What it has done so
far lies in DIR/cache and DIR/work/ID: the next runner of the job goes on there.

Exit codes: 0: what became of the job is in the database (done, failed, blocked, back in the queue); 3: the lease was
lost before the start; 75: the database is away, nobody was told; -9: cancelled, told to stop, or the lease was lost.
"""

import argparse
import errno
import importlib
import json
import os
import select
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.service.data.catalog import Ledger
from cluster.service.data.database import connect
from cluster.service.data.records import Claim, Lease
from cluster.service.data.states import FAILED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError
from cluster.service.queue.queue import Queue
from cluster.service.recipe_of_wish import ANALYSIS
from cluster.service.store.model_roots import Roots
from cluster.service.store.reservation import holder_of
from cluster.service.store.store import Store
from cluster.service.work.folder_lock import FolderInUseError, exclusive
from cluster.service.work.lease import LeaseKeeper, end_group, retry_while_leased
from mint.core.errors import DiskFullError, MintError
from mint.core.log import configure_logging, log

OVER, LOST, AWAY = 0, 3, 75
FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_SECONDS = 0.2  # for the end of compiling, and for a job
DISK = "disk: "  # how the reason begins of a job that waits for room


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Where a runner finds and leaves things."""

    data: Path
    roots: tuple[Path, ...]
    allow_hub: bool = False
    cluster: str = ""
    max_store_bytes: int | None = None

    @property
    def store(self) -> Path:
        return self.data / "store"

    @property
    def locks(self) -> Path:
        return self.data / "work" / "locks"

    def work(self, job: str) -> Path:
        """What a job has written so far."""
        return self.data / "work" / job

    def log(self, job: str) -> Path:
        """What its runners said."""
        return self.data / "logs" / f"{job}.log"

    def arguments(self, job: str) -> list[str]:
        """The command line of a runner; `job` may be empty: it is told later."""
        asked = ["--data", str(self.data), *(["--job", job] if job else [])]
        for root in self.roots:
            asked += ["--root", str(root)]
        asked += ["--allow-hub"] if self.allow_hub else []
        asked += ["--cluster", self.cluster] if self.cluster else []
        asked += ["--max-store", str(self.max_store_bytes)] if self.max_store_bytes is not None else []
        return [sys.executable, "-P", "-m", "cluster.service.work.runner", *asked]


def main() -> None:
    """Work on the job that the command line or standard input names."""
    place, job = _arguments()
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.environ["MINT_CACHE"] = str(place.data / "cache")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # what a model names is not fetched
    if not job:
        _get_ready()
    line = sys.stdin.readline()
    if not line:
        return  # it was not needed: the service ended
    told: dict[str, str] = json.loads(line)
    if not job:
        job = told["job"]
        with place.log(job).open("ab") as said:
            for descriptor in (1, 2):
                os.dup2(said.fileno(), descriptor)
    configure_logging(verbose=True)
    try:
        code = run(place, job, told["database"], told["lease"])
    except DatabaseUnavailableError as error:
        log.error("database.away", reason=str(error))
        code = AWAY
    except LeaseLostError as error:
        log.error("lease.lost", reason=str(error))
        end_group()
    sys.stdout.flush()
    sys.exit(code)


def _get_ready() -> None:
    """Import what a job needs, in this process and in the one that will load what it makes; then load its kernels.

    Whatever is not begun when a job comes is left for later: only who works on it renews its lease.
    """
    from mint.assembly.stock_child import stock

    stock()
    if _is_told():
        return
    importlib.import_module("cluster.service.work.stages")
    from mint.analysis.unit_jobs import warm_kernels

    while not _is_told():
        compiling = warm_kernels(ANALYSIS["rounding"])
        while compiling and compiling.poll() is None and not _is_told(LOOK_SECONDS):
            pass
        if not compiling or compiling.returncode:
            return


def _is_told(seconds: float = 0.0) -> bool:
    """Whether there is something on standard input, or its end, before so many seconds have passed."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def run(place: RunnerSettings, job: str, database: str, lease: str) -> int:
    """Work on a job until it is over, and say so in the database; the exit code.

    Raises `LeaseLostError` or `DatabaseUnavailableError`.
    """
    connected = connect(database)
    queue, ledger = Queue(connected), Ledger(connected)
    claim = Claim(queue.get(job), lease)
    if queue.renew(claim) is Lease.LOST:
        return LOST
    log.info("job.begun", job=job, attempt=claim.job.attempts, pid=os.getpid())
    with LeaseKeeper(queue, claim) as keeper:
        try:
            with exclusive(place.locks / claim.job.wish.analysis_key):
                from cluster.service.work.stages import Stages  # imports MLX: only once the lease is being kept

                store = Store(place.store, ledger, place.max_store_bytes)
                roots = Roots(place.roots, ledger, allow_hub=place.allow_hub)
                end = Stages(queue, claim, store, roots, place.work(job), socket.gethostname(), place.cluster).run()
            keeper.rest()
            retry_while_leased(lambda: queue.advance(claim, end.state, artifact=end.artifact, result=end.result))
            with suppress(DatabaseUnavailableError):  # what is held is let go in time
                ledger.drop(holder_of(claim))
        except (LeaseLostError, DatabaseUnavailableError):
            raise
        except Exception as error:  # whatever it is, people see why
            traceback.print_exc()
            keeper.rest()
            retry_while_leased(partial(_tell_end, queue, claim, error))
    log.info("job.ended", job=job)
    return OVER


def _tell_end(queue: Queue, claim: Claim, error: Exception) -> None:
    """Write why a job cannot go on."""
    if isinstance(error, FolderInUseError):
        queue.release(claim, str(error))
    elif is_full(error):
        queue.block(claim, f"{DISK}{str(error).removeprefix(DISK)}")
    elif isinstance(error, MintError):
        queue.advance(claim, FAILED, reason=str(error))
    else:
        summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        queue.advance(
            claim, FAILED, reason=f"something unforeseen ({summary}); the log of job {claim.job.id} on the service's "
            "machine has the whole story, please report it",
        )  # fmt: skip


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _arguments() -> tuple[RunnerSettings, str]:
    parser = argparse.ArgumentParser(prog="python -m cluster.service.work.runner")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--job", default="")
    parser.add_argument("--root", type=Path, action="append", default=[])
    parser.add_argument("--allow-hub", action="store_true")
    parser.add_argument("--cluster", default="")
    parser.add_argument("--max-store", type=int)
    given: Any = parser.parse_args()
    return RunnerSettings(given.data, tuple(given.root), given.allow_hub, given.cluster, given.max_store), given.job


if __name__ == "__main__":
    main()
