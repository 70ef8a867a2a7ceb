"""Builds the shim of `shim.c`, preloads it, and arms it in a process."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

from mint.run.blas import find_openblas

SOURCE = Path(__file__).with_name("shim.c")
_LOADED = "MINT_ATTACK_SHIM"  # the library, in a process that has it preloaded


class Kind(IntFlag):
    """Kinds of operations, as in shim.c."""

    READ, WRITE, SYNC, RENAME, UNLINK, CREATE, TRUNCATE, OPEN = (1 << bit for bit in range(8))


class Way(IntEnum):
    """Ways to spoil an operation, as in shim.c."""

    COUNT, KILL_BEFORE, KILL_HALFWAY, KILL_AFTER, FAIL, FAIL_ALWAYS, HALF = range(7)


CHANGES = Kind.WRITE | Kind.SYNC | Kind.RENAME | Kind.UNLINK | Kind.CREATE | Kind.TRUNCATE
KILLS = (Way.KILL_BEFORE, Way.KILL_HALFWAY, Way.KILL_AFTER)


@dataclass(frozen=True, slots=True)
class Spoil:
    """The operation to spoil: the `number`-th of some `kinds` on paths that begin with `prefix`, and the error."""

    prefix: Path
    kinds: Kind = CHANGES
    way: Way = Way.COUNT
    number: int = 0
    error: int = 0

    def __str__(self) -> str:
        error = f" {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.way.name}{error} of operation {self.number}"


def may_preload() -> bool:
    """True where the shim can be built and preloaded: Linux with a C compiler."""
    return sys.platform == "linux" and shutil.which("gcc") is not None


def preload() -> None:
    """Restart this program with the shim preloaded, once."""
    if _LOADED in os.environ:
        return
    library = Path(tempfile.mkdtemp(prefix="mint-attack-")) / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE, "-ldl"], check=True)
    preloads = " ".join(filter(None, (str(library), find_openblas())))  # mint restarts itself for a fast BLAS
    added = {"LD_PRELOAD": preloads, _LOADED: str(library), "OPENBLAS_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **added})


def arm(spoil: Spoil) -> None:
    """Spoil an operation of this process from now on."""
    path = os.fsencode(spoil.prefix)
    _library().attack_arm(path, int(spoil.kinds), int(spoil.way), spoil.number, spoil.error)


def operations() -> int:
    """The number of operations since `arm`."""
    return int(_library().attack_operations())


def hits() -> int:
    """The number of operations that were spoiled since `arm`."""
    return int(_library().attack_hits())


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ[_LOADED])
