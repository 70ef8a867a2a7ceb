"""Compiled kernels are kept on disk, and compiled again where the disk has lost them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mint.kernels.code_cache import code_folder, may_cache
from mint.kernels.compiled import compiled


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MINT_KERNELS", str(tmp_path))
    for function in (code_folder, may_cache):
        function.cache_clear()
    yield code_folder()
    for function in (code_folder, may_cache):
        function.cache_clear()


def _successor(number: int) -> int:
    return number + 1


@pytest.mark.parametrize("content", [b"", bytes(100)])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_kernel_is_compiled_again_and_kept(kind: str, content: bytes, folder: Path) -> None:
    assert compiled(_successor)(1) == 2
    (file,) = folder.rglob(f"*.{kind}")
    file.write_bytes(content)
    assert compiled(_successor)(1) == 2
    kernel = compiled(_successor)
    assert kernel(1) == 2
    assert sum(kernel.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]
