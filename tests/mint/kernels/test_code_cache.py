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


def _double(number: int) -> int:
    return number * 2


def test_code_of_another_kernel_is_not_run(folder: Path) -> None:
    assert compiled(_successor)(5) == 6
    (own,) = folder.rglob("*.nbc")
    assert compiled(_double)(5) == 10
    (other,) = set(folder.rglob("*.nbc")) - {own}
    own.write_bytes(other.read_bytes())
    assert compiled(_successor)(5) == 6


def test_a_bit_that_a_disk_has_turned_is_noticed(folder: Path) -> None:
    assert compiled(_successor)(5) == 6
    (file,) = folder.rglob("*.nbc")
    whole = file.read_bytes()
    for position in range(len(whole) // 4, len(whole), len(whole) // 4):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        kernel = compiled(_successor)
        assert kernel(5) == 6
        assert not kernel.stats.cache_hits  # type: ignore[attr-defined]
        again = compiled(_successor)
        assert again(5) == 6
        assert again.stats.cache_hits  # type: ignore[attr-defined]
