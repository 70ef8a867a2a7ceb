"""The values that a shell completes: devices, loaders, qualities, roundings and models."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mint.formats.quality import QUALITIES
from mint.formats.rounding import ROUNDINGS
from mint.plan.objectives import OBJECTIVES
from mint.plan.recipe import DTYPES


def _starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _devices() -> Iterator[str]:
    from mint.targets.devices import THIS, devices

    yield THIS
    yield from (device.name for device in devices())


def _loaders() -> Iterator[str]:
    from mint.targets.loaders import loaders

    yield from (loader.name for loader in loaders())


def _cached_models() -> Iterator[str]:
    """The ids of the models in the cache of the Hugging Face hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    yield from sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*--*"))


def models(incomplete: str) -> list[str]:
    """Folders that hold or lead to a model, and ids of the hub's cache."""
    parent = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    prefix = "" if str(parent) == "." and not incomplete.startswith("./") else f"{parent}/".replace("//", "/")
    try:
        names = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        names = []
    folders = [prefix + name for name in names]
    return [name for name in (*folders, *_cached_models()) if name.startswith(incomplete)]


devices = _starting(_devices)
loaders = _starting(_loaders)
qualities = _starting(lambda: QUALITIES)
roundings = _starting(lambda: ROUNDINGS)
objectives = _starting(lambda: OBJECTIVES)
dtypes = _starting(lambda: DTYPES)
