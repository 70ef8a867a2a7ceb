"""Limits of a job: its memory, its processors, and its time of work.

Memory is that of the runner and all its processes, without the pages of files, which the system takes back when it
needs them. The processors are those that the runner may use (Linux), and the threads of the numeric libraries.
"""

import os
import random
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.service.data.records import Job
from cluster.service.settings import Settings
from mint.core.sizes import format_size

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
_HOUR = 3600.0


def excess(job: Job, pid: int, settings: Settings, now: float) -> str:
    """The reason why a running job must end; empty within its limits."""
    limits = [limit for limit in (job.deadline_seconds, settings.job_seconds) if limit is not None]
    worked = job.worked_seconds + now - (job.started_at or now)
    if limits and worked > min(limits):
        return (
            f"it worked for {worked / _HOUR:.2g} hours, the limit is {min(limits) / _HOUR:.2g}; submit it again to "
            "resume, with a later deadline"
        )
    if settings.job_memory_bytes is not None and (nbytes := _memory_bytes(pid)) > settings.job_memory_bytes:
        return (
            f"it took {format_size(nbytes)} of memory, a job may take {format_size(settings.job_memory_bytes)} here; "
            "needed: a service with another --job-memory, or a smaller model"
        )
    return ""


def limit_threads(environment: MutableMapping[str, str], cpus: int | None) -> None:
    """Let the numeric libraries of a process use so many threads."""
    if cpus:
        environment.update(dict.fromkeys(_THREADS, str(cpus)))


def limit_cpus(cpus: int | None) -> None:
    """Let this process and its children run on so many processors, chosen by chance; only Linux can do that."""
    if cpus and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        chosen = random.sample(allowed, min(cpus, len(allowed)))
        for thread in Path("/proc/self/task").iterdir():  # a prepared runner has some already
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), chosen)


def _memory_bytes(pid: int) -> int:
    nbytes = 0
    try:
        process = psutil.Process(pid)
        for part in (process, *process.children(recursive=True)):
            memory = part.memory_info()
            nbytes += memory.rss - getattr(memory, "shared", 0)
    except psutil.Error:
        pass  # it is ending
    return nbytes
