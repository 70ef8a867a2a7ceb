"""A runner that is ready before there is a job for it: it has imported MLX and mlx_lm, loaded the kernels, and waits.

Rules. It is a process as any other runner, for one job: what one job leaves in memory, the next never sees. It is
nobody's until it is taken, holds no lease, and ends when the service does, however that ends: its standard input ends.
One that nobody needed for a while is let go, since it takes memory. Kernels belong to no model: runners share them with
all that mint does for this user, and where they have to be compiled first that begins with the service.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.service.work.runner import RunnerSettings
from mint.core.log import log
from mint.kernels.code_cache import code_folder, may_cache
from mint.run.blas import preloading

SETTLED_SECONDS = 5.0  # the start of a runner: another that starts beside it would take half of a small machine
IDLE_SECONDS = 900.0
AGAIN_SECONDS = 60.0  # from the start of one that died with nothing to do until the next: it may lack memory


class WarmRunner:
    """At most one runner that waits, at `place`, with the same `library` preloaded as the last one that began.

    None waits before the first job, unless it has something to do: an `early` one.
    """

    def __init__(
        self, place: RunnerSettings, *, early: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = place
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._turn: float | None = clock() if early else None
        self._library = ""
        self._not_before = clock()

    @property
    def pid(self) -> int:
        """The runner that waits; 0 if none does."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    def keep(self, *, working: bool) -> None:
        """Start one where a job may come soon, let it go where none came; `working`: whether a runner is at work."""
        quiet = self._clock() - self._turn if self._turn is not None else IDLE_SECONDS
        if quiet >= IDLE_SECONDS:
            self.drop()
        elif not self.pid and self._clock() >= self._not_before and (not working or quiet >= SETTLED_SECONDS):
            self._not_before = self._clock() + AGAIN_SECONDS
            with suppress(OSError), self._place.log("spare").open("ab") as said:
                self._process = start(self._place, "", said.fileno(), self._library)
                log.info("runner.prepared", pid=self._process.pid)

    def take(self, library: str) -> "subprocess.Popen[bytes] | None":
        """For a job that begins: the runner that waits, the taker's from now on; None if there is none like that."""
        if library != self._library:
            self.drop()
        self._turn, self._library = self._clock(), library
        self._not_before = self._turn
        process, self._process = self._process, None
        return process if process and process.poll() is None else None

    def drop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin
            process.stdin.close()


def start(place: RunnerSettings, job: str, said: int, library: str = "") -> "subprocess.Popen[bytes]":
    """A runner, for `job` or for one that it will be told; what it says goes to the open file `said`."""
    environment = preloading(library) if library else dict(os.environ)
    if may_cache():
        environment["MINT_KERNELS"] = str(code_folder().parent)
    return subprocess.Popen(
        place.arguments(job), stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True
    )
