"""The device that measures, packs and computes: one implementation of `Backend` per kind, chosen in one place.

Everything that depends on the device is a member here. A backend promises that `errors` are those of
what its `pack` writes, and that `unpack` reads exactly the stored values.
"""

# S slices (experts), R rows, C columns, B vectors

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from mint.core.errors import MintError
from mint.formats.format import Format
from mint.formats.rounding import Rounding

if TYPE_CHECKING:
    import mlx.core as mx

    from mint.kernels.fused_rounding import FusedRounding
    from mint.kernels.oracle import Errors


class Backend(Protocol):
    """One kind of device. Weights are evaluated arrays (S, R, C) in their own dtype."""

    kind: str  # the name of the device in analyses and models: results are equal to the last bit within one kind
    measures_with: str  # the code that measures affine formats, in words
    compensates_with: str  # the code of compensated rounding, in words; on a GPU known once it was used
    roundings: tuple[str, ...]  # names of those that it computes; other roundings are measured as one of them
    runs_stored_weights: bool  # products with stored weights are fast; elsewhere a model is held in float32
    unpacks_lazily: bool  # `unpack` returns a graph; elsewhere its result takes memory at once
    fuses_functions: bool  # `mx.compile` pays; on a CPU each fused function calls a C++ compiler, for seconds
    has_compiled_kernels: bool  # those of `warmup`; elsewhere nothing waits for the compiler
    uses_blas: bool  # a BLAS library multiplies float32 matrices

    @property
    def fused_rounding(self) -> "FusedRounding | None":
        """The kernels that compensate on the device; None: those of the CPU do."""

    def memory_bytes(self) -> int:
        """Bytes that the device has for a model and the work on it."""

    def working_bytes(self, weights: int) -> int:
        """The most bytes that `errors` and `pack` take beside a weight of so many elements and its packed form."""

    def errors(self, weight: "mx.array", formats: Sequence[Format], rounding: Rounding) -> "Errors":
        """The squared error of each slice in each format, with scales chosen by `rounding`."""

    def pack(self, weight: "mx.array", format: Format, rounding: Rounding) -> tuple[Any, ...]:
        """The tensors that store the weight, in the order of `Format.tensors`: contiguous numpy arrays."""

    def unpack(self, parts: Sequence["mx.array"], format: Format) -> "mx.array":
        """The (..., C) float32 weights of stored tensors, such as `pack` writes them."""

    def multiply(self, vectors: "mx.array", parts: Sequence["mx.array"], format: Format) -> "mx.array":
        """(B, C) float32 vectors times the transpose of the stored (R, C) weight: (B, R) in float32."""


def _cpu() -> Backend:
    from mint.kernels.cpu import CpuBackend

    return CpuBackend()


def _gpu() -> Backend:
    from mint.kernels.gpu import GpuBackend

    return GpuBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"cpu": _cpu, "gpu": _gpu}  # by MLX's kind of device
_used: list[Backend] = []


def backend() -> Backend:
    """The backend in `use`, else that of MLX's default device."""
    if _used:
        return _used[-1]
    import mlx.core as mx

    return _backend_of("gpu" if mx.default_device() == mx.gpu else "cpu")


def check_rounding(rounding: Rounding) -> None:
    """Raise `MintError` for a rounding that the backend does not compute: none stands in for another."""
    names = backend().roundings
    if rounding.measured_as not in names:
        raise MintError(
            f"the backend {backend().kind!r} does not compute the rounding {rounding.name!r}; "
            f"needed one of: {', '.join(sorted(names))}"
        )


@cache
def _backend_of(device: str) -> Backend:
    return BACKENDS[device]()


@contextmanager
def using(chosen: Backend) -> Iterator[None]:
    """Measure, pack and compute on another backend in this process."""
    _used.append(chosen)
    try:
        yield
    finally:
        _used.remove(chosen)
