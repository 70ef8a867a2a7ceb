"""The folder of compiled kernels: one per state of their source files."""

import os
from functools import cache
from hashlib import sha256
from pathlib import Path

from mint.core.cache import kernel_folder
from mint.formats import scheme


@cache
def code_folder() -> Path:
    """The folder that numba keeps compiled code in, named by a digest of the kernels, their paths and their times.

    numba looks only at the file of the outermost function, and would run stale code. It also keeps code by the path of
    that file, and drops it where the time of the file is another one. So environments whose kernels differ in either
    share nothing: neither would find what the other compiled.
    """
    folder = Path(__file__).parent
    files = (*sorted(folder.glob("*.py")), Path(scheme.__file__))  # the numbers of the schemes are constants there
    digest = sha256(str(folder).encode())
    for file in files:
        digest.update(f"\0{file.stat().st_mtime}\0".encode() + file.read_bytes())
    return kernel_folder() / digest.hexdigest()[:16]


@cache
def may_cache() -> bool:
    """True where compiled code can be kept; elsewhere every process compiles anew and works all the same."""
    folder = code_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
