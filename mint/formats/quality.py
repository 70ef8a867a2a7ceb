"""The qualities: recipes by one word. A quality sets the options that are not given; each is a row of a table."""

import os
from dataclasses import dataclass

from mint.core.errors import MintError
from mint.core.log import log

ENVIRONMENT = "MINT_QUALITY"  # a user's own default


@dataclass(frozen=True, slots=True)
class Quality:
    """One word for a recipe: the rounding that it stands for, and what that costs and gains, as measured.

    Seconds and memory are those of SmolLM2-135M on two cores with OpenBLAS, `kl` is that against uniform 4-bit rounded
    by mlx, at equal bytes, on novels and a handbook, of it and of a small mixture (docs/benchmarks.md).
    """

    name: str
    title: str
    rounding: str
    seconds: str
    memory: str
    kl: str


QUALITIES = {
    quality.name: quality
    for quality in (
        Quality("fast", "the best formats, rounded as mlx rounds", "nearest", "5", "0.6 GB", "-28 to -68 %"),
        Quality("good", "weights make up for each other's rounding errors", "compensate", "380", "2.0 GB",
                "-80 to -82 %"),
        Quality("best", "rows too, by gradients; then scales are trained", "tune", "500", "1.9 GB",
                "-82 to -86 %"),
    )
}  # fmt: skip
DEFAULT_QUALITY = "good"


def parse_quality(name: str) -> Quality:
    """The quality of this name, the default for an empty one; `MintError` lists the names that exist."""
    name = name or os.environ.get(ENVIRONMENT, "") or DEFAULT_QUALITY
    if name not in QUALITIES:
        raise MintError(f"{name!r} is not a quality; needed one of: {', '.join(QUALITIES)}")
    return QUALITIES[name]


def option_of(rounding: str) -> str:
    """The option that asks for a rounding, as people type it: a quality, where one stands for it."""
    name = next((row.name for row in QUALITIES.values() if row.rounding == rounding), "")
    return f"--quality {name}" if name else f"--rounding {rounding}"


def default_rounding() -> str:
    """The rounding of the default quality; a user's own that does not exist is logged, since imports need a value."""
    name = os.environ.get(ENVIRONMENT, "") or DEFAULT_QUALITY
    if name not in QUALITIES:
        log.warning("quality.unknown", variable=ENVIRONMENT, found=name, used=DEFAULT_QUALITY)
    return QUALITIES.get(name, QUALITIES[DEFAULT_QUALITY]).rounding
