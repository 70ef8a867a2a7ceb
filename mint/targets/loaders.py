"""The stored formats that each generation of a loader reads.

A generation is the first release that reads what the one before cannot; later releases read it too. Dates are those
of the release tags, for LM Studio those of the commit that pins MLX in lmstudio-ai/mlx-engine. A plan that stores its
modules in different formats needs more than the formats: the loader must read an entry per module (`mixed`), and
the entry's key `mode` is an error for loaders older than modes, so a plan of affine formats leaves it out.
Sources are merged pull requests, and release tags that contain them.
"""

from dataclasses import dataclass

from mint.core.errors import MintError
from mint.formats.format import AFFINE, FORMATS, KEEP, MXFP4, NVFP4, Format, known_formats


@dataclass(frozen=True, slots=True)
class Loader:
    """A generation of a loader: the formats it reads, and the entries of `quantization` it understands."""

    name: str
    released: str  # ISO date; empty for `current`
    formats: tuple[Format, ...]
    mixed: bool  # reads one entry per module; without it every module has the one format, or none
    source: str


def _affine(*bits: int) -> tuple[Format, ...]:
    return (*(format for format in AFFINE if format.bits in bits), KEEP)


_POWERS = _affine(2, 4, 8)
_NO_5 = _affine(2, 3, 4, 6, 8)
_ALL_AFFINE = _affine(2, 3, 4, 5, 6, 8)
_MXFP4 = (*_ALL_AFFINE, MXFP4)
_NVFP4 = (*_MXFP4, NVFP4)
CURRENT = "current"
_ENGINE = "https://github.com/lmstudio-ai/mlx-engine/commit/"

# oldest first within a family; what comes last in a name is the release
LOADERS = (
    Loader(CURRENT, "", FORMATS, True, "https://github.com/ml-explore/mlx/releases/tag/v0.32.0"),
    # mlx, with the mlx-lm of its day
    Loader("mlx-0.20", "2024-11-05", _POWERS, False, "what ml-explore/mlx#1613 adds to"),
    Loader("mlx-0.21.0", "2024-11-22", _NO_5, False, "ml-explore/mlx#1613 (3 and 6 bits)"),
    Loader(
        "mlx-0.21.1",
        "2024-12-06",
        _NO_5,
        True,
        "ml-explore/mlx#1638 (parameters per module), ml-explore/mlx-examples#1132 (mlx-lm 0.20.4 reads them)",
    ),
    Loader("mlx-0.26.0", "2025-06-02", _ALL_AFFINE, True, "ml-explore/mlx#2226 (5 bits)"),
    Loader(
        "mlx-0.29.0",
        "2025-08-29",
        _MXFP4,
        True,
        "ml-explore/mlx#2499 (mode, mxfp4), ml-explore/mlx-lm#385 (mlx-lm 0.27.0 reads it)",
    ),
    Loader("mlx-0.30.3", "2026-01-13", _NVFP4, True, "ml-explore/mlx#2946 (nvfp4 and mxfp8 on Metal and CPU)"),
    # mlx-swift-lm, formerly in mlx-swift-examples, with the oldest mlx-swift it accepts
    Loader(
        "mlx-swift-lm-2.21.2",
        "2024-12-10",
        _NO_5,
        False,
        "https://github.com/ml-explore/mlx-swift/tree/0.21.2 (mlx 0.21.0)",
    ),
    Loader(
        "mlx-swift-lm-2.25.4",
        "2025-06-06",
        _NO_5,
        True,
        "ml-explore/mlx-swift-examples#293 (entries per module); the key mode fails before 2.25.9:"
        " ml-explore/mlx-swift-examples#397",
    ),
    Loader(
        "mlx-swift-lm-2.29.1",
        "2025-10-16",
        _ALL_AFFINE,
        True,
        "ml-explore/mlx-swift-examples#411, ml-explore/mlx-swift#273 (mlx 0.29.1); its mxfp4 linear layers expect"
        " biases: ml-explore/mlx-swift#384",
    ),
    Loader(
        "mlx-swift-lm-3.31.4",
        "2026-06-29",
        _NVFP4,
        True,
        "ml-explore/mlx-swift#384 (in mlx-swift 0.31.4), ml-explore/mlx-swift-lm#395 (mixed, tested); an open report of"
        " garbage from one mixed Qwen3.5: ml-explore/mlx-swift-lm#450",
    ),
    # LM Studio's MLX engine
    Loader("lm-studio-2024-10", "2024-10-07", _POWERS, False, f"{_ENGINE}036e0b2 (mlx 0.18.0)"),
    Loader(
        "lm-studio-2024-11",
        "2024-11-26",
        _NO_5,
        False,
        f"{_ENGINE}1ccce42 (mlx 0.21.0), lmstudio-ai/mlx-engine#54 (LM Studio 0.3.5 build 8)",
    ),
    Loader("lm-studio-2024-12", "2024-12-13", _NO_5, True, f"{_ENGINE}a2151d4 (mlx 0.21.1, mlx-lm 0.20.4)"),
    Loader(
        "lm-studio-2025-06",
        "2025-06-26",
        _ALL_AFFINE,
        True,
        f"{_ENGINE}030cc3e (mlx 0.26.1), lmstudio-ai/mlx-engine#171",
    ),
    Loader("lm-studio-2025-09", "2025-09-18", _MXFP4, True, f"{_ENGINE}d978204 (mlx 0.29.1)"),
    Loader("lm-studio-2026-02", "2026-02-05", _NVFP4, True, f"{_ENGINE}65367cb (mlx 0.30.5)"),
)
_BY_NAME = {loader.name: loader for loader in LOADERS}


def loader(name: str) -> Loader:
    """The loader generation of this name; `MintError` lists those that exist."""
    if name not in _BY_NAME:
        raise MintError(f"{name!r} is not a known loader; needed one of: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def compatible_formats(name: str) -> tuple[Format, ...]:
    """The formats that the loader generation `name` reads, `KEEP` among them, in the order of `known_formats`."""
    formats = loader(name).formats
    return tuple(format for format in known_formats() if format in formats or name in format.scheme.loaders)
