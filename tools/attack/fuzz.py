"""Feeds mutated input to the parsers of `parsers.py`: each returns or raises `MintError`, and nothing else.

    python -m tools.attack.fuzz [NAME ...] [--count N] [--seed N]

Every input follows from the name, the seed and its number, so a finding can be made again with `--only NUMBER`. An
input that takes over ten seconds, or four gigabytes more than before, is a finding too. The exit code is 1 for any.
"""

import argparse
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mint.core.errors import MintError
from tools.attack.parsers import PARSERS, Made, Parser, make

_SECONDS = 10
_BYTES = 4 << 30


class TooLongError(BaseException):
    """An input takes too long."""


def fuzz(name: str, made: Made, numbers: Sequence[int], seed: int = 0) -> dict[str, tuple[int, bytes]]:
    """Feed inputs to a parser; return the kinds of findings, each with the number of its first input and that input."""
    parser, findings = PARSERS[name], dict[str, tuple[int, bytes]]()
    seeds = list(parser.seeds(made))
    for number in numbers:
        chance = random.Random(f"{name} {seed} {number}")
        text = parser.mutation(seeds[number % len(seeds)], chance)
        if finding := _finding(parser, made, text):
            findings.setdefault(finding, (number, text))
    return findings


def _finding(parser: Parser, made: Made, text: bytes) -> str:
    """The error and its line for an input that a parser neither reads nor refuses; else empty."""
    try:
        with _limited():
            parser.read(made, text)
    except MintError:
        return ""
    except (Exception, TooLongError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [entry for entry in frames if "/mint/" in entry.filename or "/cluster/" in entry.filename] or frames
        return f"{type(error).__name__} at {own[-1].filename.rpartition('mint/')[2]}:{own[-1].lineno}"
    return ""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, resource.RLIM_INFINITY))


def main() -> None:
    """Parse the command line, fuzz, print a line per parser, and exit with 1 for any finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PARSERS)}; default: all")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="feed this input alone, and print it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        if sys.platform == "linux":
            _limit_memory()
        for name in options.name or PARSERS:
            started = time.monotonic()
            numbers = range(options.count) if options.only is None else [options.only]
            findings = fuzz(name, made, numbers, options.seed)
            print(
                f"{name:12} {len(numbers):7} inputs, {len(findings)} findings, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            for finding, (number, text) in findings.items():
                print(f"    {finding}: --only {number}", text if options.only is not None else text[:150], flush=True)
            found += len(findings)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
