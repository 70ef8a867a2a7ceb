"""Runs one job in its own process: `python -m cluster.service.work.runner --data DIR --job ID --root FOLDER ...`.

Standard input brings a line of JSON: the address of the database and the lease, which must not be seen in a list of
processes. Without --job the process imports what any job needs, and waits for that line to name its job too. It leads
its own process group, is the only writer of the job's events while it holds the lease, and dies with it. Its results so
far lie in DIR/cache and DIR/work/ID, where the next runner of the job continues.

Exit codes: 0: the outcome is in the database (done, failed, blocked, back in the queue); 3: the lease was lost before
the start; 75: the database is away and knows no outcome; -9: cancelled, told to stop, or the lease was lost.
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

from structlog.contextvars import bind_contextvars

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import Claim, Lease
from cluster.service.data.states import FAILED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError
from cluster.service.queue.queue import Queue
from cluster.service.store.model_roots import Roots
from cluster.service.store.reservation import holder_of
from cluster.service.store.store import Store
from cluster.service.work.folder_lock import FolderInUseError, exclusive
from cluster.service.work.lease import LeaseKeeper, end_group, retry_while_leased
from mint.core.errors import DiskFullError, MintError
from mint.core.log import configure_logging, log
from mint.plan.recipe import Recipe

OVER, LOST, AWAY = 0, 3, 75
FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_SECONDS = 0.2  # between looks for the end of compiling, and for a job
DISK = "disk: "  # the beginning of the reason of a job that waits for room


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """The folders, cluster and limits of a runner."""

    data: Path
    roots: tuple[Path, ...]
    allow_hub: bool = False
    cluster: str = ""
    max_store_bytes: int | None = None

    @property
    def store_folder(self) -> Path:
        return self.data / "store"

    @property
    def lock_folder(self) -> Path:
        return self.data / "work" / "locks"

    def work_folder(self, job: str) -> Path:
        """The files of a job that is not done."""
        return self.data / "work" / job

    def log_path(self, job: str) -> Path:
        """The output of a job's runners."""
        return self.data / "logs" / f"{job}.log"

    def arguments(self, job: str) -> list[str]:
        """The command line of a runner; if `job` is empty, it reads its job from standard input."""
        options = ["--data", str(self.data), *(["--job", job] if job else [])]
        for root in self.roots:
            options += ["--root", str(root)]
        options += ["--allow-hub"] if self.allow_hub else []
        options += ["--cluster", self.cluster] if self.cluster else []
        options += ["--max-store", str(self.max_store_bytes)] if self.max_store_bytes is not None else []
        return [sys.executable, "-P", "-m", "cluster.service.work.runner", *options]


def main() -> None:
    """Run the job that the command line or standard input names."""
    settings, job = _arguments()
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.environ["MINT_CACHE"] = str(settings.data / "cache")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # a model cannot make it download anything
    if not job:
        _get_ready()
    line = sys.stdin.readline()
    if not line:
        return  # the service ended before it needed this runner
    message: dict[str, str] = json.loads(line)
    if not job:
        job = message["job"]
        with settings.log_path(job).open("ab") as output:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
    configure_logging(verbose=True)
    bind_contextvars(job=job)
    try:
        code = run(settings, job, message["database"], message["lease"])
    except DatabaseUnavailableError as error:
        log.error("database.lost", reason=str(error))
        code = AWAY
    except LeaseLostError as error:
        log.error("lease.lost", reason=str(error))
        end_group()
    sys.stdout.flush()
    sys.exit(code)


def _get_ready() -> None:
    """Import what a job needs, here and in the process that will load the model that it makes; then load its kernels.

    A job that arrives ends this at the next step, since its lease is renewed only once it runs.
    """
    from mint.assembly.stock_child import stock

    stock()
    if _has_input():
        return
    importlib.import_module("cluster.service.work.stages")
    from mint.analysis.unit_jobs import warm_kernels

    while not _has_input():
        compiling = warm_kernels(Recipe().rounding)
        while compiling and compiling.poll() is None and not _has_input(LOOK_SECONDS):
            pass
        if not compiling or compiling.returncode:
            return


def _has_input(seconds: float = 0.0) -> bool:
    """True if a line, or the end, arrives on standard input within some seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def run(settings: RunnerSettings, job: str, database: str, lease: str) -> int:
    """Run a job to its end, write that into the database, and return the exit code.

    Raises `LeaseLostError` or `DatabaseUnavailableError`.
    """
    connected = connect(database)
    queue, catalog = Queue(connected), Catalog(connected)
    claim = Claim(queue.get(job), lease)
    if queue.renew(claim) is Lease.LOST:
        return LOST
    bind_contextvars(model=claim.job.wish.model)
    log.info("job.begun", attempt=claim.job.attempts, pid=os.getpid())
    with LeaseKeeper(queue, claim) as keeper:
        try:
            with exclusive(settings.lock_folder / claim.job.wish.analysis_key):
                from cluster.service.work.stages import Stages  # imports MLX, which takes longer than a lease lives

                store = Store(settings.store_folder, catalog, settings.max_store_bytes)
                roots = Roots(settings.roots, catalog, allow_hub=settings.allow_hub)
                end = Stages(
                    queue, claim, store, roots, settings.work_folder(job), socket.gethostname(), settings.cluster
                ).run()
            keeper.stop()
            retry_while_leased(lambda: queue.advance(claim, end.state, artifact=end.artifact, result=end.result))
            with suppress(DatabaseUnavailableError):  # its holds run out
                catalog.drop(holder_of(claim))
        except (LeaseLostError, DatabaseUnavailableError):
            raise
        except Exception as error:  # the job must end with a reason
            traceback.print_exc()
            keeper.stop()
            retry_while_leased(partial(_write_failure, queue, claim, error))
    log.info("job.ended")
    return OVER


def _write_failure(queue: Queue, claim: Claim, error: Exception) -> None:
    """Write the reason why a job cannot go on."""
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
    """True if an error, or one of its causes, is a full disk."""
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
    options: Any = parser.parse_args()
    settings = RunnerSettings(options.data, tuple(options.root), options.allow_hub, options.cluster, options.max_store)
    return settings, options.job


if __name__ == "__main__":
    main()
