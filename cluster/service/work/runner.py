"""Runs one job in its own process: `python -m cluster.service.work.runner [JOB]`.

Standard input brings the `Order`, a line of JSON: the address of the database and the lease must not be seen in a list
of processes. Without JOB the process imports what any job needs, and waits for that line. It leads its own process
group, is the only writer of the job's events while it holds the lease, and dies with it. All processes that it started
end with it. Its results so far lie in DATA/cache and DATA/work/JOB, where the next runner of the job continues.

Exit codes: 0: the outcome is in the database (done, failed, blocked, back in the queue); 3: the lease was lost before
the start; 75: the database is away and knows no outcome; -9: cancelled, told to stop, or the lease was lost.
"""

import errno
import importlib
import os
import select
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter
from structlog.contextvars import bind_contextvars

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import Claim, Lease
from cluster.service.data.states import DONE, FAILED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError, YieldedError
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from cluster.service.work.folder_lock import FolderInUseError, exclusive
from cluster.service.work.lease import LeaseKeeper, end_descendants, end_group, retry_while_leased
from cluster.service.work.limits import limit_cpus
from mint.core.errors import DiskFullError, MintError, fixable
from mint.core.log import configure_logging, log
from mint.plan.recipe import Recipe

OVER, LOST, AWAY = 0, 3, 75
FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_SECONDS = 0.2  # between looks for the end of compiling, and for a job
DISK = "disk: "  # the beginning of the reason of a job that waits for room


@dataclass(frozen=True, slots=True)
class Order:
    """The job of a runner, with its lease and the settings of the service."""

    job: str
    lease: str
    settings: Settings


ORDERS = TypeAdapter(Order)


def main() -> None:
    """Run the job that standard input names."""
    is_warm = not sys.argv[1:]
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # a model cannot make it download anything
    if is_warm:
        _get_ready()
    line = sys.stdin.readline()
    code = _obey(ORDERS.validate_json(line), is_warm=is_warm) if line else OVER  # the service ended before it had a job
    sys.stdout.flush()
    end_descendants()
    sys.exit(code)


def _obey(order: Order, *, is_warm: bool) -> int:
    """Run the job of an order, and return the exit code; a lost lease ends the process instead."""
    if is_warm:
        with order.settings.log_path(order.job).open("ab") as output:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
    configure_logging(level="debug")
    bind_contextvars(job=order.job)
    try:
        return run(order)
    except DatabaseUnavailableError as error:
        log.error("database.lost", reason=str(error))
        return AWAY
    except LeaseLostError as error:
        log.error("lease.lost", reason=str(error))
        end_group()
        raise


def _get_ready() -> None:
    """Import what a job needs, here and in the process that will load the model that it makes; then load its kernels.

    A job that arrives ends this at the next step, since its lease is renewed only once it runs.
    """
    from mint.assembly.stock_child import stock

    stock()
    if _has_input():
        return
    importlib.import_module("cluster.service.work.stages")
    from mint.kernels.ready import warm_kernels

    while not _has_input():
        compiling = warm_kernels(Recipe().rounding)
        while compiling and compiling.poll() is None and not _has_input(LOOK_SECONDS):
            pass
        if not compiling or compiling.returncode:
            return


def _has_input(seconds: float = 0.0) -> bool:
    """True if a line, or the end, arrives on standard input within some seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def run(order: Order) -> int:
    """Run a job to its end, write that into the database, and return the exit code.

    Raises `LeaseLostError` or `DatabaseUnavailableError`.
    """
    settings = order.settings
    limit_cpus(settings.job_cpus)
    database = connect(settings.database_url)
    queue, catalog = Queue(database, lease_seconds=settings.lease_seconds), Catalog(database)
    claim = Claim(queue.get(order.job), order.lease)
    lease = queue.renew(claim)
    if lease is Lease.LOST:
        return LOST
    bind_contextvars(model=claim.job.request.model)
    log.info("job.begun", attempt=claim.job.attempts, pid=os.getpid())
    with LeaseKeeper(queue, claim) as keeper:
        if lease is Lease.YIELD_WANTED:
            keeper.must_yield.set()
        try:
            with exclusive(settings.work_folder / "locks" / claim.job.request.analysis_key):
                from cluster.service.work.stages import Stages  # imports MLX, which takes longer than a lease lives

                store = Store(settings.data / "store", catalog, settings.max_store_bytes)
                roots = Roots(
                    settings.roots,
                    catalog,
                    groups=settings.group_roots,
                    cache=settings.cache_folder,
                    allow_hub=settings.allow_hub,
                )
                work = settings.work_folder / order.job
                host, memory = socket.gethostname(), settings.job_memory_bytes
                end = Stages(queue, claim, store, roots, work, host, settings.cluster, keeper.must_yield, memory).run()
            keeper.stop()
            retry_while_leased(queue.advance, claim, DONE, artifact=end.artifact, result=end.result)
            with suppress(DatabaseUnavailableError):  # its holds run out
                catalog.drop(claim.holder)
        except (LeaseLostError, DatabaseUnavailableError):
            raise
        except Exception as error:  # the job must end with a reason
            if not isinstance(error, YieldedError):
                traceback.print_exc()
            keeper.stop()
            retry_while_leased(_write_failure, queue, claim, error)
    log.info("job.ended")
    return OVER


def _write_failure(queue: Queue, claim: Claim, error: Exception) -> None:
    """Write the reason why a job cannot go on."""
    if isinstance(error, FolderInUseError | YieldedError):
        queue.release(claim, str(error))
    elif is_full(error):
        queue.block(claim, f"{DISK}{str(error).removeprefix(DISK)}")
    elif reason := str(error) if isinstance(error, MintError) else fixable(error):
        queue.advance(claim, FAILED, reason=reason)
    else:
        summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        queue.advance(
            claim, FAILED, reason=f"something unforeseen ({summary}); the log of job {claim.job.id} on the service's "
            "machine has all of it, please report it",
        )  # fmt: skip


def is_full(error: BaseException | None) -> bool:
    """True if an error, or one of its causes, is a full disk."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
