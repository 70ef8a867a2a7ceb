"""Load of the service: a crowd of users, downloads beside a plain file server, and the cost of later budgets.

    python -m tools.bench.service --crowd                 50 users, 500 submissions of 20 requests, 200 watchers
    python -m tools.bench.service --download 256MB        rate of a download beside Python's http.server, same client
    python -m tools.bench.service --budgets MODEL [--probe] [--rounding search] [--cold]
                                                          a model's first submission beside its next, with other budgets

Each part starts a real `mint serve` with real runners, on a free port of loopback, over a temporary folder. The crowd's
models are tiny, with random weights, so that a job is little more than its process. Times are those that clients see;
memory and CPU seconds are those of the serving process alone, without its runners. Exit code 1 if a promise was broken:
an error, a lost or doubled job, a watcher without all events.
"""

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.tokens import Tokens
from cluster.service.settings import Settings
from cluster.service.store.store import Store
from mint.client.client import Client
from mint.core.sizes import parse_size
from mint.plan.recipe import Recipe
from tools.lab.crowd import Crowd, Seen, rush
from tools.models.make_shape import write_shape
from tools.models.shapes import TINY, Shape, qwen3

_MODELS, _BUDGETS = 5, 4  # tiny models, and budgets of each: 20 distinct requests
_BITS = (
    "4.25bpw",
    "5bpw",
    "6bpw",
    "7bpw",
    "4.5bpw",
    "5.5bpw",
    "6.5bpw",
    "7.5bpw",
    "4.75bpw",
    "5.25bpw",
    "5.75bpw",
    "8bpw",
)
_LOOK_SECONDS = 0.05
_CHUNK = 1 << 20
_END_SECONDS = 30.0


def main() -> int:
    """Run the selected benchmarks and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crowd", action="store_true", help="many users at once")
    parser.add_argument("--users", type=int, default=50, help="of the crowd, a token each (default %(default)s)")
    parser.add_argument("--submissions", type=int, default=500, help="of all users together (default %(default)s)")
    parser.add_argument("--watchers", type=int, default=200, help="streams of events (default %(default)s)")
    parser.add_argument("--slots", type=int, default=1, help="jobs at a time (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, choices=range(1, len(_BITS) // _BUDGETS + 1),
                        help="crowds, one after the other, with other requests, to see growth of memory")  # fmt: skip
    parser.add_argument("--download", type=parse_size, metavar="SIZE", help="of a file of this size")
    parser.add_argument("--repeats", type=int, default=5, help="of each download, in turns (default %(default)s)")
    parser.add_argument("--budgets", type=Path, metavar="MODEL", help="folder of a full-precision model")
    parser.add_argument("--budget", action="append", help="of MODEL, in this order; default: 6bpw, 5bpw, 4.5bpw")
    parser.add_argument("--probe", action="store_true", help="probe MODEL too")
    parser.add_argument("--rounding", default="nearest", help="of MODEL (default %(default)s)")
    parser.add_argument("--cold", action="store_true", help="as on a new machine: no kernel is compiled yet")
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between budgets (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not (options.crowd or options.download or options.budgets):
        parser.error("give --crowd, --download SIZE or --budgets MODEL")
    record: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="mint-bench-") as name:
        folder = Path(name)
        if options.crowd:
            shape = {name: getattr(options, name) for name in ("users", "submissions", "watchers", "slots", "rounds")}
            record["crowd"] = crowd(folder / "crowd", **shape)
        if options.download:
            record["download"] = downloads(folder / "download", options.download, options.repeats)
        if options.budgets:
            texts = options.budget or ["6bpw", "5bpw", "4.5bpw"]
            wish = {"probe": options.probe, "rounding": options.rounding}
            record["budgets"] = budgets(
                folder / "budgets", options.budgets.resolve(), texts, options.pause, wish, cold=options.cold
            )
    record["load_after"] = os.getloadavg()
    print(json.dumps(record, indent=2) if options.json else _table(record))
    return int(any(row["wrong"] for row in record.get("crowd", ())))


# a service


class Served:
    """A `mint serve` of our own as a process, over `data`."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        command = [sys.executable, "-m", "mint", "serve", "--data", str(data)]
        self._log = (data / "stderr").open("w+b")
        self._process = subprocess.Popen([*command, "--port", "0", *options], stdout=subprocess.PIPE, stderr=self._log)
        assert self._process.stdout
        line = self._process.stdout.readline().decode()
        if "serves at" not in line:
            raise SystemExit(f"mint serve did not start: {self.stderr()}")
        self.url = line.split()[3].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.pid = self._process.pid

    def stderr(self) -> str:
        """The text that the service wrote on stderr."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def end(self) -> None:
        """Tell it to stop, and wait for that."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextmanager
def serving(data: Path, *options: str) -> Iterator[Served]:
    """A service that runs during the block; its data folder is made if it does not exist."""
    data.mkdir(parents=True, exist_ok=True)
    served = Served(data, *options)
    try:
        yield served
    finally:
        served.end()


class Use:
    """Memory of a process before, at its peak and after the block, and CPU seconds of the block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.before, cpu = used(pid)
        self.peak = self.after = self.before
        self._cpu = cpu
        self.cpu_seconds = 0.0

    def __enter__(self) -> "Use":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.after, cpu = used(self._pid)
        self.cpu_seconds = cpu - self._cpu

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.peak = max(self.peak, used(self._pid)[0])


def used(pid: int) -> tuple[int, float]:
    """Resident bytes and CPU seconds of a process, without its children."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    process = subprocess.run(["ps", "-o", "rss=,time=", "-p", str(pid)], capture_output=True, text=True, check=True)
    kilobytes, clock = process.stdout.split()
    return int(kilobytes) << 10, sum(60**power * float(part) for power, part in enumerate(reversed(clock.split(":"))))


def make_tokens(data: Path, names: Sequence[str]) -> list[str]:
    """Create one token per name."""
    data.mkdir(parents=True, exist_ok=True)
    database = connect(Settings(data).database_url)
    try:
        return [Tokens(database).create(name, ["read", "submit"]) for name in names]
    finally:
        database.close()


def write_tiny_model(folder: Path, *, seed: int = 0) -> None:
    """Write a model of random weights that a job quantizes in a moment."""
    folder.mkdir(parents=True)
    write_shape(folder, Shape(TINY, qwen3), random=True, seed=seed)


# crowds


def crowd(
    folder: Path, *, users: int, submissions: int, watchers: int, slots: int, rounds: int
) -> list[dict[str, Any]]:
    """Figures of several crowds at one service, one after the other, and of the service's memory and CPU."""
    models = [f"tiny{number}" for number in range(_MODELS)]
    for seed, name in enumerate(models):
        write_tiny_model(folder / "models" / name, seed=seed)
    tokens = make_tokens(folder / "data", [f"user{number}" for number in range(users)])
    rows = []
    with serving(folder / "data", "--root", str(folder / "models"), "--slots", str(slots)) as served:
        for turn in range(rounds):
            bits = _BITS[turn * _BUDGETS : (turn + 1) * _BUDGETS]
            requests = [(model, budget) for model in models for budget in bits]
            people = Crowd(tokens, requests, submissions, watchers, seed=turn)
            with Use(served.pid) as use:
                seen = asyncio.run(rush(served.port, people))
            errors = [line for line in served.stderr().splitlines() if "error" in line.lower()]
            rows.append(_crowd_record(people, seen, use) | {"wrong": seen.wrong(people) + errors})
    return rows


def _crowd_record(people: Crowd, seen: Seen, use: Use) -> dict[str, Any]:
    return {
        "users": len(people.tokens),
        "submissions": people.submissions,
        "distinct": len(people.requests),
        "watchers": people.watchers,
        "jobs_done": seen.states["done"],
        "watchers_with_all_events": seen.ends["done"],
        "events_sent": seen.events,
        "pushed_back": seen.pushed_back,
        "reconnects": seen.reconnects,
        "seconds": seen.seconds,
        "submissions_per_second": len(seen.submitted) / seen.submitting_seconds,
        "submission_seconds": _spread(seen.submitted),
        "status_seconds_while_all_submit": _spread(seen.looked_in_rush),
        "status_seconds_later": _spread(seen.looked_later),
        "rss_before_bytes": use.before,
        "rss_peak_bytes": use.peak,
        "rss_after_bytes": use.after,
        "cpu_seconds": use.cpu_seconds,
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Count, median, 99th percentile and maximum."""
    if not seconds:
        return {"count": 0}
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"count": len(ordered), "p50": statistics.median(ordered), "p99": p99, "most": ordered[-1]}


# downloads


def downloads(folder: Path, nbytes: int, repeats: int) -> dict[str, Any]:
    """Median bytes per second of one file, from the service and from Python's http.server in turns."""
    data, plain = folder / "data", folder / "plain"
    plain.mkdir(parents=True)
    with (plain / "big.bin").open("wb") as file:
        for start in range(0, nbytes, _CHUNK):
            file.write(os.urandom(min(_CHUNK, nbytes - start)))
    (token,) = make_tokens(data, ["anna"])
    database = connect(Settings(data).database_url)
    artifact = Store(data / "store", Catalog(database)).put("model", "0" * 64, {"big.bin": plain / "big.bin"})
    database.close()
    with serving(data, "--slots", "0") as served, _static(plain) as port, Use(served.pid) as use:
        headers = {"Authorization": f"Bearer {token}"}
        path = f"/v1/artifacts/{artifact.digest}/files/big.bin"

        def checked() -> None:
            with Client(served.url, token) as client:
                client.download(artifact.digest, folder / "out")
            shutil.rmtree(folder / "out")

        ways: dict[str, Callable[[], None]] = {
            "service": lambda: _fetch(served.port, path, headers, nbytes),
            "python http.server": lambda: _fetch(port, "/big.bin", {}, nbytes),
            "service, mint.Client (writes, checks SHA-256)": checked,
        }
        seconds_by_way: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if turn:  # the first one fills the caches
                    seconds_by_way[name].append(time.perf_counter() - began)
    rates = {name: nbytes / statistics.median(seconds) for name, seconds in seconds_by_way.items()}
    return {
        "nbytes": nbytes,
        "repeats": repeats,
        "bytes_per_second": rates,
        "service_over_plain": rates["service"] / rates["python http.server"],
        "rss_before_bytes": use.before,
        "rss_peak_bytes": use.peak,
        "cpu_seconds": use.cpu_seconds,
    }


@contextmanager
def _static(folder: Path) -> Iterator[int]:
    """Port of Python's own file server, which runs during the block."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        yield int(process.stdout.readline().split(" port ")[1].split()[0])
    finally:
        process.terminate()
        process.wait()


def _fetch(port: int, path: str, headers: Mapping[str, str], nbytes: int) -> None:
    """Read a file from a server and discard it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=dict(headers))
    answer = connection.getresponse()
    buffer, total = bytearray(_CHUNK), 0
    while read := answer.readinto(buffer):
        total += read
    connection.close()
    if answer.status != 200 or total != nbytes:
        raise SystemExit(f"{path}: status {answer.status}, {total} bytes of {nbytes}")


# budgets


@dataclass(frozen=True, slots=True)
class Made:
    """Seconds of one budget: for the client, for its runner, and for each stage."""

    budget: str
    asked: float  # from the submission to the event of its end
    worked: float  # from the start of its runner to the end
    stages: Mapping[str, float]


def budgets(
    folder: Path, model: Path, texts: Sequence[str], pause: float, wish: Mapping[str, Any], *, cold: bool
) -> dict[str, Any]:
    """Submit the budgets of a model one after the other; only the first has to measure."""
    write_tiny_model(folder / "models" / "tiny")
    data = folder / "data"
    (token,) = make_tokens(data, ["anna"])
    roots = ("--root", str(folder / "models"), "--root", str(model.parent))
    if cold:
        os.environ["MINT_KERNELS"] = str(folder / "kernels")
    with serving(data, *roots) as served, Client(served.url, token) as client:
        if not cold:
            _made(client, "tiny", "5bpw", wish)  # compiles the kernels, which a machine does once
        made: list[Made] = []
        for budget in texts:
            if made or not cold:
                time.sleep(pause)  # people do not submit the next budget at once
            made.append(_made(client, model.name, budget, wish))
    first, *later = made
    return {
        "model": model.name,
        "options": ", ".join(
            [*(["cold"] if cold else []), *(f"{name} {value}" for name, value in wish.items() if value)]
        ),
        "made": [asdict(budget) for budget in made],
        "asked_ratio": statistics.median(budget.asked for budget in later) / first.asked if later else None,
        "worked_ratio": statistics.median(budget.worked for budget in later) / first.worked if later else None,
    }


def _made(client: Client, model: str, budget: str, options: Mapping[str, Any]) -> Made:
    began = time.perf_counter()
    (job,) = client.submit(model, [budget], Recipe.from_dict(options))
    done = client.wait(job.id)
    asked = time.perf_counter() - began
    assert done.started_at is not None and done.finished_at is not None
    return Made(budget, asked, done.finished_at - done.started_at, done.result["stage_seconds"])


# the table


def _table(record: Mapping[str, Any]) -> str:
    lines = [
        f"{record['cores']} cores, load {record['load_before'][0]:.1f} before, {record['load_after'][0]:.1f} after"
    ]
    for row in record.get("crowd", ()):
        lines += ["", f"{row['users']} users, {row['submissions']} submissions of {row['distinct']} distinct requests, "
                  f"{row['watchers']} watchers: {len(row['wrong'])} violations"]  # fmt: skip
        lines += [f"  wrong: {text}" for text in row["wrong"][:20]]
        lines += [f"  {name:<36}{_shown(name, value)}" for name, value in row.items() if name != "wrong"]
    if figures := record.get("download"):
        lines += ["", f"{figures['nbytes'] / 1e6:.0f} MB, median of {figures['repeats']}, in turns"]
        lines += [f"  {name:<48}{rate / 1e6:8.0f} MB/s" for name, rate in figures["bytes_per_second"].items()]
        names = ("service_over_plain", "rss_before_bytes", "rss_peak_bytes", "cpu_seconds")
        lines += [f"  {name:<36}{_shown(name, figures[name])}" for name in names]
    if figures := record.get("budgets"):
        lines += ["", f"{figures['model']}, {figures['options']}: submission to done, runner, stages (seconds)"]
        for made in figures["made"]:
            stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in made["stages"].items())
            lines.append(f"  {made['budget']:<12}{made['asked']:8.2f}{made['worked']:8.2f}   {stages}")
        if figures["asked_ratio"] is not None:
            lines.append(
                f"  later budgets over the first: {figures['asked_ratio']:.1%}, runner {figures['worked_ratio']:.1%}"
            )
    return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(
            f"{key} {number if key == 'count' else f'{1000 * number:.1f} ms'}" for key, number in value.items()
        )
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f} MB"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
