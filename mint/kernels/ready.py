"""Gets the compiled kernels ready that a rounding needs on this device, before any weight takes memory."""

import subprocess
from collections.abc import Iterable, Sequence

from mint.core.progress import OnProgress, Progress
from mint.formats.format import QUANTIZABLE
from mint.formats.rounding import ROUNDINGS
from mint.kernels.backend import backend, check_rounding
from mint.kernels.warmup import FEATURES, MEASURE, WRITE, KernelSet, begin, compile_all, is_ready, kernel_sets


def ready_kernels(
    rounding: str,
    on_progress: OnProgress,
    works: Sequence[str] = (MEASURE, WRITE),
    dtypes: Iterable[str] = QUANTIZABLE,
) -> None:
    """Compile the kernels of `works` on weights of these safetensors dtypes, all at once, and wait for them.

    Raises `MintError` for a rounding that the backend does not compute.
    """
    sets = begin_kernels(rounding, works, dtypes)
    for count, kernels in enumerate(sets):
        on_progress(Progress("compile", count, len(sets), "kernels, once"))
        begin(kernels).wait()
        on_progress(Progress("compile", count + 1, len(sets), ""))


def begin_kernels(rounding: str, works: Sequence[str], dtypes: Iterable[str] = QUANTIZABLE) -> list[KernelSet]:
    """Begin to compile these kernels without waiting, and return the sets that were not ready."""
    missing = [kernels for kernels in _sets(rounding, works, tuple(dtypes)) if not is_ready(kernels)]
    for kernels in missing:
        begin(kernels)
    return missing


def warm_kernels(rounding: str) -> "subprocess.Popen[bytes] | None":
    """Load the compiled kernels of this device, so that the first unit does not wait for them.

    If some are not compiled, returns a process that compiles them; call this again once it has ended.
    `ready_kernels` waits for it too.
    """
    for kernels in _sets(rounding, (MEASURE, WRITE), QUANTIZABLE):
        if not is_ready(kernels):
            return begin(kernels)
        compile_all(kernels)
    return None


def _sets(rounding: str, works: Sequence[str], dtypes: Sequence[str]) -> list[KernelSet]:
    check_rounding(ROUNDINGS[rounding])
    if not backend().has_compiled_kernels:
        works = [work for work in works if work == FEATURES]
    return [
        kernels
        for work in works
        for kernels in kernel_sets(work, None if work == FEATURES else ROUNDINGS[rounding], dtypes)
    ]
