"""Shared by all tests: tiny models made once, and a cache folder of the test's own."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["MINT_QUALITY"] = "fast"  # of tests that name none
os.environ["MLX_DISABLE_COMPILE"] = "1"  # of child processes, too: see `_no_fused_functions`
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported: no test asks the real hub

import mlx.core as mx
import platformdirs
import pytest

from tests.worlds.zoo import ARCHITECTURES, write_model

if TYPE_CHECKING:  # tests of mint alone need neither the service nor what it needs
    from cluster.service.data.database import Database
    from tests.worlds.service_world import World

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts jobs in the background so; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

FULL_PRECISION = [name for name in ARCHITECTURES if name != "gpt_oss_mxfp4"]


@pytest.fixture(autouse=True)
def _no_fused_functions() -> None:
    """On a CPU `mx.compile` calls a C++ compiler for every fused function of every architecture."""
    mx.disable_compile()


def own_cache(folder: Path) -> Path:
    """A cache folder for analyses of a test's own; compiled kernels are shared, since compiling takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    _share(folder, "kernels")
    return folder


def _share(folder: Path, name: str) -> None:
    shared = Path(platformdirs.user_cache_dir("mint")) / name
    shared.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        (folder / name).symlink_to(shared)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = own_cache(tmp_path_factory.mktemp("cache"))
    _share(cache, "rates")  # of this machine: measuring takes a second
    monkeypatch.setenv("MINT_CACHE", str(cache))
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="session", autouse=True)
def _without_vision() -> Iterator[None]:
    """The zoo has fragments of towers, for text models to drop: tests run as without the extra, but for `vision`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mint.model.loaders.vision.find_spec", lambda name: None)
        yield


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is installed."""
    monkeypatch.setattr("mint.model.loaders.vision.find_spec", find_spec)


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


# the service


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The address of a PostgreSQL of this test run."""
    from tests.worlds import postgresql

    if reason := postgresql.why_not():
        pytest.skip(reason)
    with postgresql.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that is still empty: every test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    from tests.worlds import postgresql

    return postgresql.new_database(request.getfixturevalue("postgresql_server"), f"test_{next(_numbers)}")


_numbers = itertools.count()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def standing_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Database]":
    """A database that tests share, one after the other."""
    from cluster.service.data.database import connect

    if request.param == "sqlite":
        database = connect(f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.db'}")
    else:
        database = connect(request.getfixturevalue("postgresql_server"))
    yield database
    database.close()


@pytest.fixture
def database(standing_database: "Database") -> "Database":
    """A database with its tables, and nothing in them."""
    from tests.worlds.service_world import clear

    clear(standing_database)
    return standing_database


@pytest.fixture
def world(database: "Database") -> "World":
    """A queue and a catalog with a clock that stands still."""
    from tests.worlds.service_world import World

    return World(database)
