"""Kills a command at many moments, runs it again, and compares all files with those of an undisturbed run.

    python -m tools.attack.kill [COMMAND ...] [--count N] [--minutes N] [--by operation|time] [--seed N]

Moments are spread over the operations that change a disk (before, half way through and after each), or over time. Some
runs are killed twice or three times before they may finish. Linux with gcc only. The exit code is 1 for any fault.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from tools.attack.runs import warm_up
from tools.attack.shim import KILLS, Spoil, preload
from tools.attack.world import ATTACKED, World, digests, world

# parts of paths of files that nobody takes for results
_UNFINISHED = (".partial", ".tmp", ".journal", ".incomplete", "/cache/streams/", "/.")
_MOST_KILLS = 3  # of one trial


@dataclass(slots=True)
class Tally:
    """The counts and faults of one command."""

    command: str
    kills: int = 0
    trials: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.command:12} {self.kills:5} kills in {self.trials} trials, {len(self.faults)} faults"


def attack(name: str, count: int, *, minutes: float = inf, by_time: bool = False, seed: int = 0) -> Tally:
    """Kill the command `name` about `count` times, or as often as the minutes allow; return the faults."""
    tally, chance, end = Tally(name), random.Random(seed), time.monotonic() + 60 * minutes
    with world(name) as place:
        moments = _by_time(place, chance) if by_time else _by_operation(place, count, chance)
        while tally.kills < count and time.monotonic() < end:
            with place.folder() as folder:
                tally.trials += 1
                history = []
                for _ in range(1 if chance.random() < 0.7 else chance.randint(2, _MOST_KILLS)):
                    spoil, seconds = next(moments)
                    outcome = place.run(folder, spoil and _within(spoil, folder), seconds)
                    history.append(str(spoil or f"after {seconds:.2f} s"))
                    if outcome.code != -signal.SIGKILL:
                        break  # its moment never came
                    tally.kills += 1
                    tally.faults += [f"{history}: {fault}" for fault in _false_results(folder, place)]
                tally.faults += [f"{history}: {fault}" for fault in differences(folder, place)]
    return tally


def _within(spoil: Spoil, folder: Path) -> Spoil:
    return Spoil(folder, spoil.kinds, spoil.way, spoil.number)


def _by_operation(place: World, count: int, chance: random.Random) -> Iterator[tuple[Spoil | None, float | None]]:
    """Every way at every operation in random order, again and again."""
    with place.folder() as folder:
        operations = place.run(folder, Spoil(folder)).operations
    while True:
        moments = [(way, number) for number in range(1, operations + 1) for way in KILLS]
        chance.shuffle(moments)
        for way, number in moments:
            yield Spoil(Path(), way=way, number=number), None


def _by_time(place: World, chance: random.Random) -> Iterator[tuple[Spoil | None, float | None]]:
    started = time.monotonic()
    with place.folder() as folder:
        place.run(folder)
    whole = time.monotonic() - started
    while True:
        yield None, chance.uniform(0, whole)


def _false_results(folder: Path, place: World) -> Iterator[str]:
    """Files with a final name that are not the final ones."""
    for name, digest in digests(folder).items():
        if place.undisturbed.get(name) != digest and not any(part in f"/{name}" for part in _UNFINISHED):
            yield f"{name} has its final name, and is not the final file"


def differences(folder: Path, place: World) -> Iterator[str]:
    """The faults of the run that may finish."""
    outcome = place.run(folder)
    if outcome.code:
        yield f"the rerun ended with {outcome.code}: {outcome.printed[-500:]}"
        return
    if "Traceback" in outcome.printed:
        yield f"the rerun printed {outcome.printed[-500:]}"
    left, right = digests(folder), place.undisturbed
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            yield f"{name}: {'gone' if name not in left else 'left over' if name not in right else 'other bytes'}"


def main() -> None:
    """Parse the command line, attack, print a line per command, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", help=f"of {', '.join(ATTACKED)}; default: all")
    parser.add_argument("--count", type=int, default=500, help="kills per command")
    parser.add_argument("--minutes", type=float, default=inf, help="the longest time per command")
    parser.add_argument("--by", choices=("operation", "time"), default="operation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count, minutes, by_time, seed = options.count, options.minutes, options.by == "time", options.seed
    attack_each(options.command, lambda name: attack(name, count, minutes=minutes, by_time=by_time, seed=seed))


def attack_each(names: Sequence[str], attack: Callable[[str], Any]) -> None:
    """Attack each of the named commands, or all; print the tallies, and exit with 1 if one of them has faults."""
    preload()
    warm_up()
    faults = 0
    for name in names or ATTACKED:
        started = time.monotonic()
        tally = attack(name)
        print(f"{tally}, {time.monotonic() - started:.0f} s", *tally.faults[:20], sep="\n    ", flush=True)
        faults += len(tally.faults)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
