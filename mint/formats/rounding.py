"""The ways to choose the scales and biases of a stored weight: a rounding is one row of `ROUNDINGS`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from mint.core.errors import MintError
from mint.formats.quality import default_rounding

# squared errors of searched rounding over those of rounding to nearest, by format: medians over the units of SmolLM2,
# `dither`. From the 10th to the 90th percentile they vary by 2 %, and searching them takes ten times as long
SEARCHED_SHARE = MappingProxyType({
    "2/32": 0.685, "2/64": 0.671, "2/128": 0.613, "3/32": 0.733, "3/64": 0.764, "3/128": 0.746, "4/32": 0.761,
    "4/64": 0.823, "4/128": 0.846, "5/32": 0.769, "5/64": 0.841, "5/128": 0.887, "6/32": 0.780, "6/64": 0.844,
    "6/128": 0.879, "8/32": 0.512, "8/64": 0.540, "8/128": 0.533, "mxfp4": 0.907, "nvfp4": 0.741,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rounding:
    """One way to choose scales and biases, and what it asks of the stages that use it."""

    name: str
    title: str
    searches: bool  # scales of less error in the same bytes, instead of those of `mx.quantize`
    measured_as: str  # the rounding whose errors an analysis measures in its place
    shares: Mapping[str, float] = field(default_factory=dict)  # of these errors, by format: an estimate of its own
    sequential: bool = False  # a unit depends on the units before it; otherwise on its weight and format alone
    needs_model: bool = False  # the model runs while its units are rounded
    needs_gradients: bool = False  # and back, whole in memory
    tunes: bool = False  # scales and biases are trained at last

    @property
    def is_measured(self) -> bool:
        """True where a written unit has the measured error itself."""
        return self.measured_as == self.name


DEFAULT_ROUNDING = default_rounding()
_LEARNING_BITS = 4.25  # per weight; with more, learning gains too little for a pass of the original
# compensation searches too; how much more it gains depends on the inputs, which an analysis does not have
_COMPENSATE = Rounding(
    "compensate",
    "later weights compensate the errors of earlier ones (GPTQ)",
    searches=True,
    measured_as="nearest",
    shares=SEARCHED_SHARE,
    sequential=True,
    needs_model=True,
)
_COUPLE = replace(
    _COMPENSATE,
    name="couple",
    title="rows compensate for each other too, by the gradients of own text (YAQA)",
    needs_gradients=True,
)
_TUNE = replace(
    _COUPLE,
    name="tune",
    title="coupled, then scales and biases trained on own text, end to end (EfficientQAT)",
    tunes=True,
)
ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("nearest", "as mlx rounds", searches=False, measured_as="nearest"),
        Rounding("search", "scales of less error, same bytes", searches=True, measured_as="search"),
        _COMPENSATE,
        _COUPLE,
        _TUNE,
    )
}


def learns(rounding: Rounding, bits_per_weight: float) -> bool:
    """True if matrices of such a model learn what their outputs miss (`kernels/missing_outputs.py`)."""
    return rounding.sequential and bits_per_weight < _LEARNING_BITS


def parse_rounding(name: str) -> Rounding:
    """The rounding of this name; `MintError` lists the names that exist."""
    if name not in ROUNDINGS:
        raise MintError(f"{name!r} is not a rounding; needed one of: {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
