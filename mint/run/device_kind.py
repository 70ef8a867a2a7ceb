"""The device that measures and quantizes, and the versions that results depend on."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from mint.core.version import __version__
from mint.kernels.backend import backend

CPU = "cpu"  # the kind of a machine without a GPU for mlx
_AND = " + "


def device_kind() -> str:
    """`cpu`, or the name of the GPU. Results are comparable to the last bit within one kind."""
    return backend().kind


def joined_kinds(kinds: Iterable[str]) -> str:
    """Kinds of device as one name, for a result that several chips measured."""
    return _AND.join(sorted(set(kinds)))


def kinds_in(device: str) -> tuple[str, ...]:
    """The kinds that a name joins."""
    return tuple(device.split(_AND))


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of mint, mlx, mlx-lm and further packages by name; empty for one that is missing.

    The further ones that decide a measurement are `Source.packages`.
    """
    names = dict.fromkeys(("mint", "mlx", "mlx-lm", *packages))
    return {name: __version__ if name == "mint" else _installed(name) for name in names}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
