"""A fast BLAS for matrix products on Linux CPUs.

MLX's CPU wheel for Linux brings the reference BLAS: 2-6 GFLOP/s in float32, where OpenBLAS does 50-130. The
dynamic linker prefers symbols of its global scope, so a preloaded system OpenBLAS takes over. numpy's own OpenBLAS
cannot: its symbols have a prefix. Every command imports this file, so it imports the rest late.
"""

import os
import sys

from mint.core.log import log

_NAMES = (
    "libopenblas.so.0",
    "libopenblas.so",
    "libopenblasp.so.0",
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
)
_TIMEOUT, _AT_ONCE = "OPENBLAS_THREAD_TIMEOUT", "8"  # 2^8 cycles, by default 2^26
RESTARTED = "MINT_RESTARTED"  # set for the restarted process, which says nothing twice
_may_restart = False


def multiplies_slowly() -> bool:
    """True where MLX in this process multiplies float32 matrices with the reference BLAS of its Linux wheel."""
    from mint.kernels.backend import backend

    return sys.platform == "linux" and backend().uses_blas and not _has_blas(None)


def find_openblas() -> str:
    """A system OpenBLAS that can be preloaded, by the name or path that the linker finds it under; empty if none."""
    import ctypes.util

    candidates = (ctypes.util.find_library("openblas"), *_NAMES)
    return next((name for name in candidates if name and _has_blas(name)), "")


def allow_restart() -> None:
    """Allow `restart_with_fast_blas` to restart this process: it is a command, not the host of a library."""
    global _may_restart
    _may_restart = True


def restart_with_fast_blas() -> None:
    """Restart this command, once, with a system OpenBLAS where MLX has a slow BLAS; log a warning if there is none."""
    if multiplies_slowly():
        if _may_restart and (library := find_openblas()):
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**preloading(library), RESTARTED: "1"})
        warn_of_slow_blas()


def warn_of_slow_blas() -> None:
    """Log that products are slow, and the cure."""
    cure = "apt-get install libopenblas0-pthread (or preload another BLAS with LD_PRELOAD)"
    log.warning("openblas.not_found", reason="MLX's own BLAS on Linux is 10-40 times slower than OpenBLAS", cure=cure)


def fast_environment() -> dict[str, str]:
    """The environment of a child process that may run a model: with a system OpenBLAS where MLX has a slow BLAS."""
    if not multiplies_slowly():
        return dict(os.environ)
    if library := find_openblas():
        return preloading(library)
    warn_of_slow_blas()
    return dict(os.environ)


def preloading(library: str) -> dict[str, str]:
    """The environment of a process that starts with `library` in the linker's global scope.

    Its idle threads sleep at once, and so do those of numpy's and scipy's OpenBLAS: waiting in a loop, as they do by
    default, three libraries take the cores from each other. Compensation of SmolLM2 beside other work took 415 seconds
    of CPU time, and 322 without the loops.
    """
    others = os.environ.get("LD_PRELOAD")
    loaded = {"LD_PRELOAD": f"{library}:{others}" if others else library}
    return {_TIMEOUT: _AT_ONCE, **os.environ, **loaded}


def _has_blas(library: str | None) -> bool:
    """True where a library, or the linker's global scope for None, offers BLAS under its plain names."""
    import ctypes

    try:
        return hasattr(ctypes.CDLL(library), "cblas_sgemm")
    except OSError:
        return False
