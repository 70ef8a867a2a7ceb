"""A lock file for a folder: one process at a time works there, and the file names it.

A job's lease says who may write in the database; this lock says who writes on the disk. They differ when a runner was
stopped (a machine that slept, a debugger) while its lease ran out: it lives, keeps its files open, and may no longer
write. The next runner of the job kills it, if it is on the same machine.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mint.core.cache import recall
from mint.core.errors import MintError

_RUNNER = "cluster.service.work.runner"


class FolderInUseError(MintError):
    """A runner on another machine still works in the folder."""


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the file `lock` as the only runner; another holder on this machine is killed.

    For a runner with a lease: any other holder has lost it. Raises `FolderInUseError` for a holder elsewhere.
    """
    with _opened(lock) as descriptor:
        if not _locked(descriptor):
            pid = holder(lock)
            if not pid:
                raise FolderInUseError(
                    f"{lock}: a runner on another machine still works on this; it ends once it sees its lease lost"
                )
            os.killpg(pid, signal.SIGKILL)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Wait for the file `lock`, and hold it."""
    with _opened(lock) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def noted(lock: Path) -> Iterator[int]:
    """Hold the file `lock` if it is free; yields the process that holds it otherwise, else 0."""
    with _opened(lock) as descriptor:
        if not _locked(descriptor):
            yield recall(lock, int) or 0
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield 0


def holder(lock: Path) -> int:
    """The process on this machine that holds `lock`; 0 if there is none."""
    if not lock.exists():
        return 0
    with _opened(lock) as descriptor:
        if _locked(descriptor):
            return 0
    pid = recall(lock, _pid_here) or 0
    with suppress(psutil.Error):
        return pid if pid and _RUNNER in psutil.Process(pid).cmdline() else 0
    return 0


def _pid_here(text: bytes) -> int:
    """The process of a lock that was taken on this machine, else 0."""
    record = json.loads(text)
    return int(record["pid"]) if record["host"] == socket.gethostname() else 0


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
