"""Short jobs beside a long one, through a proxy, with pauses: their waits, and whether anything is lost.

    python -m tools.bench.lanes [--users 50] [--submissions 500] [--shape qwen3-0.6b] [--pauses 3]

A long job compensates a model of random weights. Once its turn is over, a crowd submits requests of tiny models through
nginx, and some runners are stopped for longer than a lease lives. The wait of a job is all its time but its work. The
long job is cancelled at the end: its work so far is a lower bound of its length. Exit code 1 if a promise was broken.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.service.queue.fairness import TURN_SECONDS
from mint.client.client import Client, ServedJob
from mint.plan.recipe import Recipe
from tools.bench.service import make_tokens, serving, write_tiny_model
from tools.lab.crowd import Crowd, rush
from tools.lab.proxy import proxied
from tools.models.make_shape import write_shape
from tools.models.shapes import SHAPES

_MODELS = 5
_BITS = ("4.25bpw", "5bpw", "6bpw", "7bpw")
_STOP_SECONDS = 25.0  # longer than a lease lives
_LOOK_SECONDS = 1.0


def main() -> int:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--submissions", type=int, default=500)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--shape", default="qwen3-0.6b", choices=sorted(SHAPES), help="of the long job's model")
    parser.add_argument("--pauses", type=int, default=3, help="runners that are stopped (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mint-lanes-") as name:
        record = measure(Path(name), options)
    print(json.dumps(record, indent=2))
    return int(bool(record["wrong"]))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one crowd beside one long job."""
    roots = folder / "models"
    names = [f"tiny{number}" for number in range(_MODELS)]
    for seed, name in enumerate(names):
        write_tiny_model(roots / name, seed=seed)
    (roots / "long").mkdir()
    write_shape(roots / "long", SHAPES[options.shape], random=True)
    token, *tokens = make_tokens(folder / "data", ["long", *(f"user{number}" for number in range(options.users))])
    flags = ("--root", str(roots), "--trusted-proxy", "127.0.0.1")
    with (
        serving(folder / "data", *flags) as served,
        proxied(served.port) as port,
        Client(f"127.0.0.1:{port}", token) as client,
    ):
        (long,) = client.submit("long", ["4.5bpw"], Recipe(rounding="compensate"))
        _wait_for_turn(client, long.id)
        requests = [(name, budget) for name in names for budget in _BITS]
        people = Crowd(tokens, requests, options.submissions, options.watchers)
        pausing = threading.Thread(target=_pause_runners, args=(served.pid, options.pauses), daemon=True)
        pausing.start()
        seen = asyncio.run(rush(port, people))
        long = client.job(long.id)
        short = [job for job in client.jobs(limit=500) if job.id != long.id]
        client.cancel(long.id)
    return {
        "users": options.users, "submissions": options.submissions, "short_jobs": len(short), "pauses": options.pauses,
        "seconds": round(seen.seconds, 1), "wait_seconds": _spread(list(map(_waited, short))),
        "work_seconds": _spread([job.worked_seconds for job in short]),
        "submission_seconds": _spread(seen.submitted),
        "long_state": long.state, "long_expected_seconds": round(sum(long.expected_stages.values())),
        "long_worked_seconds": round(long.worked_seconds), "long_attempts": long.attempts,
        "wrong": seen.wrong(people) + [f"the long job is {long.state}: {long.reason}"] * (long.state == "failed"),
        "load": os.getloadavg(),
    }  # fmt: skip


def _wait_for_turn(client: Client, id: str) -> None:
    while True:
        job = client.job(id)
        if job.is_final:
            raise SystemExit(f"the long job is {job.state}: {job.reason}")
        if job.started_at is not None and time.time() - job.started_at > TURN_SECONDS:
            return
        time.sleep(_LOOK_SECONDS)


def _pause_runners(server: int, count: int) -> None:
    """Stop the group of a runner for a while, so often."""
    for _ in range(count):
        time.sleep(_LOOK_SECONDS)
        runners = [child for child in psutil.Process(server).children() if _is_runner(child)]
        for runner in runners[:1]:
            print(f"stopping {runner.pid}", file=sys.stderr)
            try:
                os.killpg(runner.pid, signal.SIGSTOP)
                time.sleep(_STOP_SECONDS)
                os.killpg(runner.pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def _is_runner(process: psutil.Process) -> bool:
    return "cluster.service.work.runner" in process.cmdline()


def _waited(job: ServedJob) -> float:
    assert job.finished_at is not None
    return job.finished_at - job.created_at - job.worked_seconds


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"p50": round(statistics.median(ordered), 2), "p95": round(p95, 2), "most": round(ordered[-1], 2)}


if __name__ == "__main__":
    raise SystemExit(main())
