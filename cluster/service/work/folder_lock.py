"""One at a time on a folder: a file that its holder locks, and that says who that is.

A job's lease says who may write in the database; this says who writes on the disk. They differ when a runner was
stopped (a machine that slept, a debugger) while its lease ran out: it lives, holds its files, and no longer may.
Whoever has the job now ends it, if it is on the same machine.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint.core.errors import MintError

_RUNNER = "cluster.service.work.runner"


class FolderInUseError(MintError):
    """A runner on another machine still works there."""


@contextmanager
def exclusive(place: Path) -> Iterator[None]:
    """Be the only runner that works under the lock at `place`; one that still does on this machine is ended.

    For a runner with a lease: whoever else holds the lock has lost it. Raises `FolderInUseError` for one elsewhere.
    """
    with _opened(place) as descriptor:
        if not _locked(descriptor):
            _end_holder(place)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write(descriptor)
        yield
        os.ftruncate(descriptor, 0)


@contextmanager
def in_turn(place: Path) -> Iterator[None]:
    """Wait for one's turn under the lock at `place`."""
    with _opened(place) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def holder(place: Path) -> int:
    """The process that works under a lock on this machine; 0 if there is none."""
    if not place.exists():
        return 0
    with _opened(place) as descriptor:
        if _locked(descriptor):
            return 0
    try:
        told = json.loads(place.read_text())
    except (OSError, ValueError):
        return 0
    pid = int(told["pid"])
    return pid if told["host"] == socket.gethostname() and _RUNNER in _command(pid) else 0


def _end_holder(place: Path) -> None:
    pid = holder(place)
    if not pid:
        raise FolderInUseError(
            f"{place}: a runner on another machine still works on this; it ends once it sees its lease lost"
        )
    os.killpg(pid, signal.SIGKILL)


@contextmanager
def _opened(place: Path) -> Iterator[int]:
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
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


def _write(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _command(pid: int) -> str:
    found = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout
