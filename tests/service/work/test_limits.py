"""Limits of a job: hours of work, memory, processors."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.service.settings import Settings
from cluster.service.work.limits import excess, limit_threads
from tests.worlds.service_world import World

_BLOCK = "import sys; block = bytearray(b'x' * int(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"


def test_the_hours_of_all_attempts_count_and_the_shorter_limit_rules(world: World, tmp_path: Path) -> None:
    job = replace(world.submit(), started_at=1000.0, worked_seconds=3000.0)
    settings = Settings(tmp_path, job_seconds=3600.0)
    assert not excess(job, os.getpid(), settings, 1500.0)
    assert "the limit is 1; submit it again to resume" in excess(job, os.getpid(), settings, 1700.0)
    assert excess(replace(job, deadline_seconds=3100.0), os.getpid(), settings, 1500.0)
    assert not excess(replace(job, deadline_seconds=1e9), os.getpid(), settings, 1500.0)


@pytest.mark.parametrize(("nbytes", "is_beyond"), [(1 << 20, False), (200 << 20, True)])
def test_memory_is_that_of_the_runner_and_its_processes(
    nbytes: int, is_beyond: bool, world: World, tmp_path: Path
) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_BLOCK!r}, sys.argv[1]])"
    command = [sys.executable, "-c", parent, str(nbytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        reason = excess(world.submit(), process.pid, Settings(tmp_path, job_memory_bytes=100 << 20), time.time())
        process.stdin.close()
    assert bool(reason) == is_beyond
    assert not is_beyond or "--job-memory" in reason


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux assigns processors")
def test_a_runner_has_so_many_processors_and_threads(tmp_path: Path) -> None:
    code = "import os, cluster.service.work.limits as it; it.limit_cpus(1); print(len(os.sched_getaffinity(0)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"
    environment: dict[str, str] = {}
    limit_threads(environment, 2)
    assert environment["OMP_NUM_THREADS"] == "2"
    limit_threads(environment, None)
    assert environment["OMP_NUM_THREADS"] == "2"
