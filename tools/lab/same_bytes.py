"""Compares what two installations of MINT write for one model, byte by byte.

    python -m tools.lab.same_bytes MODEL --before PYTHON --after PYTHON [--way WAY ...] [--rounding NAME ...]

PYTHON is the interpreter of an environment in which one commit is installed, with the extras `cluster` and `service`.
Each installation analyzes, plans, writes and verifies the model in every way, in a cache of its own; the analysis, the
plan and every file of the model are compared by digest. The exit code is 1 if any file differs.
"""

import argparse
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROUNDINGS = ("nearest", "search", "compensate")
LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Installation:
    """One commit in an environment of its own, and the folder that its results go to."""

    python: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its processes: an own cache, tokens in an own home, no network."""
        own = {"MINT_CACHE": str(self.folder / "cache"), "HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    def command(self, *arguments: str) -> list[str]:
        """The command line of `mint ARGUMENTS`."""
        return [str(self.python.with_name("mint")), *arguments]

    def mint(self, *arguments: str) -> None:
        """Run `mint ARGUMENTS` to its end."""
        # not in a checkout: Ray's workers import from the working directory first
        command, silent = self.command(*arguments), subprocess.DEVNULL
        subprocess.run(command, env=self.environment, cwd=self.folder, check=True, stdout=silent)


def alone(installation: Installation, model: Path, rounding: str, budgets: list[str], output: Path) -> None:
    """Quantize on this machine, in one process."""
    _quantize(installation, model, rounding, budgets, output)


def cluster(installation: Installation, model: Path, rounding: str, budgets: list[str], output: Path) -> None:
    """Quantize on a Ray of this machine."""
    _quantize(installation, model, rounding, budgets, output, "--cluster", "local")


def service(installation: Installation, model: Path, rounding: str, budgets: list[str], output: Path) -> None:
    """Submit to a service of this machine and download the results."""
    with _serving(installation, model.parent) as address:
        options = [part for budget in budgets for part in ("--budget", budget)]
        server = ("--server", address, "--rounding", rounding, "--download", str(output))
        installation.mint("submit", model.name, *options, *server)


WAYS: dict[str, Callable[[Installation, Path, str, list[str], Path], None]] = {
    "alone": alone,
    "cluster": cluster,
    "service": service,
}


def _quantize(
    installation: Installation, model: Path, rounding: str, budgets: list[str], output: Path, *more: str
) -> None:
    analysis = output / "model.mint"
    options = [part for budget in budgets for part in ("--budget", budget)]
    paths = ("--analysis", str(analysis), "--output", str(output / "model"))
    installation.mint("quantize", str(model), *options, "--rounding", rounding, *paths, *more)
    for budget in budgets:
        installation.mint("allocate", str(analysis), "--budget", budget, "--output", str(output / f"{budget}.json"))


@contextmanager
def _serving(installation: Installation, root: Path) -> Iterator[str]:
    data = installation.folder / "service"
    command = installation.command("serve", "--data", str(data), "--root", str(root), "--port", "0")
    log = (installation.folder / "serve.log").open("w+")
    environment = installation.environment
    process = subprocess.Popen(command, env=environment, cwd=data.parent, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not (match := LISTENING.search(Path(log.name).read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"mint serve ended with {process.returncode}; see {log.name}")
        yield match.group(0)
    finally:
        process.terminate()
        process.wait()
        log.close()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def compare(
    model: Path, pythons: tuple[Path, Path], ways: list[str], roundings: list[str], budgets: list[str], work: Path
) -> int:
    """Print one row per way and rounding; return the number of files that differ or exist on one side only."""
    different = 0
    for way in ways:
        for rounding in roundings:
            results = []
            for name, python in zip(("before", "after"), pythons, strict=True):
                folder = work / name
                output = folder / way / rounding
                output.mkdir(parents=True)
                WAYS[way](Installation(python, folder), model, rounding, budgets, output)
                results.append(digests(output))
            left, right = results
            names = [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]
            different += len(names)
            print(f"{way:8} {rounding:11} {len(right):3} files, {len(names)} different", *names, flush=True)
    return different


def main() -> None:
    """Parse the command line, compare, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--before", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--after", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--way", action="append", choices=sorted(WAYS), help="default: all three")
    parser.add_argument("--rounding", action="append", choices=ROUNDINGS, help="default: all three")
    parser.add_argument("--budget", action="append", help="default: 4.5bpw and 6bpw")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        options = (asked.way or list(WAYS), asked.rounding or list(ROUNDINGS), asked.budget or ["4.5bpw", "6bpw"])
        different = compare(asked.model.resolve(), (asked.before, asked.after), *options, Path(work))
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
