"""Where compiled kernels lie, and what must not need them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mint
from mint.kernels.code_cache import code_folder


def _printed(code: str, **environment: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_kernels_in_another_folder_have_a_folder_and_a_marker_of_their_own(tmp_path: Path) -> None:
    """numba keeps code by the path of its source file: an equal copy elsewhere has nothing compiled."""
    shutil.copytree(Path(mint.__file__).parent, tmp_path / "mint", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import mint.kernels.code_cache as cache; print(cache.__file__, cache.code_folder())"
    file, folder = _printed(code, PYTHONPATH=str(tmp_path)).split()
    assert Path(file).is_relative_to(tmp_path)
    assert Path(folder).name != code_folder().name
    assert _printed(code, PYTHONPATH=str(Path(mint.__file__).parent.parent)).split()[1].endswith(code_folder().name)


def test_kernels_of_another_time_have_a_folder_and_a_marker_of_their_own(tmp_path: Path) -> None:
    """numba drops what it compiled from a file of another time: an environment that is made again has nothing."""
    shutil.copytree(Path(mint.__file__).parent, tmp_path / "mint", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from mint.kernels.code_cache import code_folder; print(code_folder())"
    before = _printed(code, PYTHONPATH=str(tmp_path))
    os.utime(tmp_path / "mint" / "kernels" / "cpu.py", (0, 0))
    assert _printed(code, PYTHONPATH=str(tmp_path)) != before


def test_the_gpu_backend_needs_no_compiler() -> None:
    code = """
import sys
import mlx.core as mx
from mint.formats.format import AFFINE, MXFP4, NVFP4
from mint.formats.rounding import ROUNDINGS
from mint.kernels.backend import backend, using
from mint.kernels.gpu import GpuBackend
mx.disable_compile()
weight = mx.random.normal((1, 4, 128)).astype(mx.bfloat16)
with using(GpuBackend()):
    for rounding in ROUNDINGS.values():
        backend().errors(weight, (*AFFINE, MXFP4, NVFP4), rounding)
        for format in (AFFINE[0], MXFP4, NVFP4):
            parts = tuple(map(mx.array, backend().pack(weight.astype(mx.float32), format, rounding)))
            mx.eval(backend().unpack(parts, format))
print([name for name in ("numba", "llvmlite") if name in sys.modules])
"""
    assert _printed(code) == "[]"


def test_importing_kernels_reads_and_hashes_nothing() -> None:
    code = """
import sys
import mint.kernels.backend, mint.kernels.gpu, mint.kernels.warmup, mint.kernels.code_cache as cache
print(cache.code_folder.cache_info().currsize, cache.may_cache.cache_info().currsize)
"""
    assert _printed(code) == "0 0"
