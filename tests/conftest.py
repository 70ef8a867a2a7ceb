"""What every test stands on: tiny models made once, and a cache folder of the test's own."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import platformdirs
import pytest

from tests.zoo import ARCHITECTURES, write_model

FULL_PRECISION = [name for name in ARCHITECTURES if name != "gpt_oss_mxfp4"]


@pytest.fixture(autouse=True)
def _no_fused_functions() -> None:
    """On a CPU `mx.compile` calls a C++ compiler for every fused function of every architecture."""
    mx.disable_compile()


def own_cache(folder: Path) -> Path:
    """A cache folder for analyses of a test's own; compiled kernels are shared, since compiling takes seconds."""
    kernels = Path(platformdirs.user_cache_dir("mint")) / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "kernels").exists():
        (folder / "kernels").symlink_to(kernels)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CACHE", str(own_cache(tmp_path_factory.mktemp("cache"))))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a tokenizer, in one shard. Not to be changed by a test."""
    return write_model("llama", tmp_path_factory.mktemp("models") / "llama", tokenizer=True)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model of the zoo for this test alone."""

    def make(name: str = "llama", folder: str = "model", **options: object) -> Path:
        return write_model(name, tmp_path / folder, **options)  # type: ignore[arg-type]

    return make
