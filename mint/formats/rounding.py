"""The ways to choose the scales and biases of a stored weight: a rounding is one row of `ROUNDINGS`."""

from dataclasses import dataclass

from mint.core.errors import MintError


@dataclass(frozen=True, slots=True)
class Rounding:
    """One way to choose scales and biases, and what it asks of the stages that use it."""

    name: str
    title: str
    searches: bool  # scales of less error in the same bytes, instead of those of `mx.quantize`
    measured_as: str  # the rounding whose errors an analysis measures in its place
    sequential: bool = False  # a unit depends on the units before it; otherwise on its weight and format alone
    needs_model: bool = False  # the model runs while its units are rounded

    @property
    def is_measured(self) -> bool:
        """True where a written unit has the measured error itself."""
        return self.measured_as == self.name


DEFAULT_ROUNDING = "nearest"
# compensation searches too; how much more it gains depends on the inputs, which an analysis does not have
ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("nearest", "as mlx rounds", searches=False, measured_as="nearest"),
        Rounding("search", "scales of less error, same bytes", searches=True, measured_as="search"),
        Rounding(
            "compensate",
            "later weights compensate the errors of earlier ones (GPTQ)",
            searches=True,
            measured_as="search",
            sequential=True,
            needs_model=True,
        ),
    )
}


def parse_rounding(name: str) -> Rounding:
    """The rounding of this name; `MintError` lists the names that exist."""
    if name not in ROUNDINGS:
        raise MintError(f"{name!r} is not a rounding; needed one of: {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
