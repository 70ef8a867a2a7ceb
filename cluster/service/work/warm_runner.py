"""A runner that is ready before there is a job: it has imported MLX and mlx_lm, loaded the kernels, and waits.

Rules. It is a process like any other runner, for one job, so that no job sees what another left in memory. It holds no
lease until it is taken, and ends with the service, however that ends, because its standard input ends. One that was not
needed for a while is ended, since it takes memory. Kernels belong to no model: runners share them with every mint of
this user, and where they must be compiled first, that begins with the service.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.service.data.records import Claim
from cluster.service.settings import Settings
from cluster.service.work.limits import limit_threads
from cluster.service.work.runner import ORDERS, Order
from mint.core.log import log
from mint.kernels.code_cache import code_folder, may_cache
from mint.run.blas import preloading

SETTLED_SECONDS = 5.0  # a runner's start; a second one at that time would take half of a small machine
IDLE_SECONDS = 900.0
AGAIN_SECONDS = 60.0  # from the start of one that died without a job to the next: memory may be short


class WarmRunner:
    """At most one waiting runner, with the same BLAS `library` preloaded as the last one that began a job.

    None waits before the first job, unless there are kernels to compile: `early`.
    """

    def __init__(self, settings: Settings, *, early: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._needed_at = clock() if early else clock() - IDLE_SECONDS
        self._library = ""
        self._not_before = clock()

    @property
    def pid(self) -> int:
        """The waiting process; 0 if there is none."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    def keep(self, *, working: bool) -> None:
        """Start one if a job may come soon, end it if none came; `working`: another runner is at work."""
        idle = self._clock() - self._needed_at
        if idle >= IDLE_SECONDS:
            self.drop()
        elif not self.pid and self._clock() >= self._not_before and (not working or idle >= SETTLED_SECONDS):
            self._not_before = self._clock() + AGAIN_SECONDS
            with suppress(OSError), self._settings.log_path("spare").open("ab") as output:
                self._process = start(self._settings, "", output.fileno(), self._library)
                log.info("runner.prepared", pid=self._process.pid)

    def take(self, library: str) -> subprocess.Popen[bytes] | None:
        """The waiting runner, which belongs to the caller from now on; None if none with `library` is ready."""
        if library != self._library:
            self.drop()
        self._needed_at, self._library = self._clock(), library
        self._not_before = self._needed_at
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


def start(settings: Settings, job: str, output: int, library: str) -> subprocess.Popen[bytes]:
    """Start a runner that logs to the open file `output`; without a `job` it gets ready for any."""
    environment = preloading(library) if library else dict(os.environ)
    environment["MINT_CACHE"] = str(settings.cache_folder)
    limit_threads(environment, settings.job_cpus)
    if may_cache():
        environment["MINT_KERNELS"] = str(code_folder().parent)
    command = [sys.executable, "-P", "-m", "cluster.service.work.runner", *([job] if job else [])]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
    )


def send_order(process: subprocess.Popen[bytes], settings: Settings, claim: Claim) -> None:
    """Give a runner its job; the supervisor reaps one that died before."""
    assert process.stdin
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(ORDERS.dump_json(Order(claim.job.id, claim.lease, settings)) + b"\n")
