"""Lets operations of a command fail: each failure is one clear error that names a file, and a rerun is not affected.

    python -m tools.attack.faults [COMMAND ...] [--count N] [--seed N]

Full disks, failed writes, flushes, renames and reads, half-done reads and writes: once or from a moment on. A failure
that does no harm may be absorbed, if all files are those of an undisturbed run. Linux with gcc only.
"""

import argparse
import errno
import random
from dataclasses import dataclass, field
from pathlib import Path

from tools.attack.kill import attack_each, differences
from tools.attack.runs import Outcome
from tools.attack.shim import CHANGES, Kind, Spoil, Way
from tools.attack.world import ATTACKED, World, digests, world

_FULL, _BROKEN, _READ_ONLY = errno.ENOSPC, errno.EIO, errno.EROFS
_READS = Kind.READ | Kind.OPEN
# kinds of operations, the way, the error; reads are those of the model too
FAULTS: tuple[tuple[Kind, Way, int], ...] = (
    (CHANGES, Way.FAIL, _FULL),
    (CHANGES, Way.FAIL_ALWAYS, _FULL),
    (CHANGES, Way.FAIL, _BROKEN),
    (CHANGES, Way.FAIL_ALWAYS, _READ_ONLY),
    (Kind.WRITE, Way.HALF, 0),
    (_READS, Way.FAIL, _BROKEN),
    (Kind.READ, Way.HALF, 0),
    (Kind.READ, Way.FAIL, errno.EINTR),
)


@dataclass(slots=True)
class Tally:
    """The counts and faults of one command."""

    command: str
    trials: int = 0
    absorbed: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = f"{self.absorbed} absorbed, {self.refused} refused, {len(self.faults)} faults"
        return f"{self.command:12} {self.trials:5} failures: {parts}"


def attack(name: str, count: int, *, seed: int = 0) -> Tally:
    """Let `count` operations of the command `name` fail, one in each run."""
    tally, chance = Tally(name), random.Random(seed)
    with world(name) as place:
        numbers: dict[Kind, int] = {}
        while tally.trials < count:
            kinds, way, error = chance.choice(FAULTS)
            with place.folder() as folder:
                if kinds not in numbers:
                    numbers[kinds] = place.run(folder, Spoil(_prefix(kinds, folder, place), kinds)).operations
                    continue
                spoil = Spoil(
                    _prefix(kinds, folder, place), kinds, way, chance.randint(1, max(1, numbers[kinds])), error
                )
                outcome = place.run(folder, spoil)
                if outcome.code == 0 and not outcome.hits:
                    continue  # its moment never came
                tally.trials += 1
                fault = _fault(outcome, folder, place)
                tally.absorbed += outcome.code == 0
                tally.refused += outcome.code == 1
                tally.faults += [
                    f"{spoil}: {sentence}" for sentence in (fault, *differences(folder, place)) if sentence
                ]
    return tally


def _prefix(kinds: Kind, folder: Path, place: World) -> Path:
    """The model for reads: what a run reads of its own files it has written before."""
    return Path(place.model) if kinds & _READS else folder


def _fault(outcome: Outcome, folder: Path, place: World) -> str:
    """The fault of the end of a run in which something failed; empty if that was absorbed or refused well."""
    lines = outcome.printed.strip().splitlines()
    if outcome.code == 0:
        return "" if digests(folder) == place.undisturbed else "ended with 0 and other files"
    if outcome.code != 1 or "Traceback" in outcome.printed:
        return f"ended with {outcome.code}: {outcome.printed[-700:]}"
    names = (str(folder), place.model, *(Path(name).name for name in place.undisturbed), "out.partial", "cache/")
    message = [line for line in lines if line.startswith("mint: ")]
    if len(message) != 1 or not any(name in message[0] for name in names):
        return f"names no file in one line: {lines[-3:]}"
    return ""


def main() -> None:
    """Parse the command line, attack, print a line per command, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", help=f"of {', '.join(ATTACKED)}; default: all")
    parser.add_argument("--count", type=int, default=200, help="failures per command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    attack_each(options.command, lambda name: attack(name, options.count, seed=options.seed))


if __name__ == "__main__":
    main()
