"""Changes one thing of a module at a time, and counts the changes that the fast tests of its room notice.

    python -m tools.attack.mutate [ROOM ...] [--file PART] [--every N] [--equivalent] [--again FILE]

Prints every mutant that survives, and a line per room. The exit code is 1 if less than 85 % of the mutants of a room
die; those of `equivalent.toml`, which change nothing that is promised, are not tried. With `--equivalent` only those
are tried, and the exit code is 1 if one of them dies. With `--again` only those are tried that an earlier output names,
and all others count as killed. Linux only.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.attack.mutate.mutants import mutants_of
from tools.attack.mutate.rooms import ROOMS, ROOT, equivalents
from tools.attack.mutate.trials import is_noticed, survey

ENOUGH = 0.85


@dataclass(slots=True)
class Tally:
    """The counts of a room."""

    room: str
    mutants: int = 0
    equivalent: int = 0
    killed: int = 0
    false: int = 0  # mutants that were held equivalent, and die

    @property
    def share(self) -> float:
        """The share of the mutants that could be noticed and were."""
        return self.killed / (self.mutants - self.equivalent) if self.mutants > self.equivalent else 1.0

    def __str__(self) -> str:
        words = f"{self.mutants:4} mutants, {self.equivalent:3} equivalent, {self.killed:4} killed"
        return f"{self.room:12} {words}: {self.share:.1%}"


def mutate(
    name: str, part: str = "", every: int = 1, *, only_equivalent: bool = False, survivors: str | None = None
) -> Tally:
    """Try every mutant of a room that is not held equivalent, or only those; print the surprises.

    `survivors` is the output of an earlier run: a mutant that is not named there counts as killed.
    """
    room, tally = ROOMS[name], Tally(name)
    tests = survey(room)
    known = {(mutant.file, mutant.name) for mutant in equivalents()}
    for file in (file for file in room.files if part in file):
        for mutant in mutants_of((ROOT / file).read_text())[::every]:
            tally.mutants += 1
            is_equivalent = (file, mutant.name) in known
            tally.equivalent += is_equivalent
            if is_equivalent != only_equivalent:
                continue
            is_old = survivors is not None and f") {mutant.name}\n" not in survivors
            is_killed = is_old or is_noticed(room, tests, file, mutant)
            tally.killed += is_killed
            tally.false += is_killed and is_equivalent
            if is_killed == is_equivalent:
                count = len(tests.of(file, mutant))
                print(f"{file}:{mutant.lines[0]} ({count} tests) {mutant.name}", flush=True)
    return tally


def main() -> None:
    """Parse the command line, mutate, and exit with 1 where too many mutants survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", nargs="*", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--file", default="", help="only files whose path has this part")
    parser.add_argument("--every", type=int, default=1, help="only every N-th mutant")
    parser.add_argument("--equivalent", action="store_true", help="only the mutants that are held equivalent")
    parser.add_argument("--again", type=Path, help="an earlier output; only the mutants that it names")
    options = parser.parse_args()
    survivors = options.again.read_text() if options.again else None
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    is_enough = True
    for name in options.room or ROOMS:
        started = time.monotonic()
        tally = mutate(name, options.file, options.every, only_equivalent=options.equivalent, survivors=survivors)
        print(f"{tally}, {time.monotonic() - started:.0f} s", flush=True)
        is_enough &= options.equivalent or tally.share >= ENOUGH
        is_enough &= not tally.false
    sys.exit(not is_enough)


if __name__ == "__main__":
    main()
