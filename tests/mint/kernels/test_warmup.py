"""Kernels are compiled once, even for two processes that start together."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mint.kernels import warmup

_COMPILE = """import sys
from mint.kernels import warmup
from mint.kernels.code_cache import code_folder
print(code_folder(), flush=True)
sys.stdin.readline()
warmup.compile_once("nearest")
print(warmup.is_ready("nearest"), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's list of locks")
def test_a_process_that_waited_for_the_compiler_of_another_does_not_compile_again(tmp_path: Path) -> None:
    environment = {**os.environ, "MINT_KERNELS": str(tmp_path)}
    command = [sys.executable, "-c", _COMPILE]
    waiting = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert waiting.stdin and waiting.stdout
    folder = Path(waiting.stdout.readline().strip())
    assert folder.parent == tmp_path
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.stdin.write("go\n")
        waiting.stdin.flush()
        while str(waiting.pid) not in Path("/proc/locks").read_text():
            assert waiting.poll() is None, "it did not wait"
        (folder / warmup.marker("nearest").name).touch()
    assert waiting.communicate()[0] == "True\n"
    assert waiting.returncode == 0
    assert not list(folder.glob("*.nbc"))


def test_kernels_that_another_processor_compiled_are_not_ready_here() -> None:
    if not warmup.is_ready("nearest"):
        warmup.make_ready("nearest")
    assert warmup.is_ready("nearest")
    assert not warmup.is_ready("nearest", "another")
