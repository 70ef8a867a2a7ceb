"""Work on one unit. Any callable is a job for this process; a `PortableJob` can also be done in another one.

A portable job describes itself in plain values, is rebuilt from them beside the model, and encodes its results as
bytes. It is named by the module and class that define it, so a new kind of job is one class, in any installed package.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any, ClassVar, Generic, Self, TypeVar

import mlx.core as mx

from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.source import Source

T = TypeVar("T")
Job = Callable[[Unit, mx.array], T]  # a unit and its evaluated weight
# one pass over a weight: evaluated arrays (S, R, C), each of some slices of a stack or of some rows of a matrix
Blocks = Callable[[], Iterator[mx.array]]
Difference = tuple[str, float, float]  # the differing quantity, its value in one result and in the other


def numbered(unit: Unit, blocks: Blocks) -> Iterator[tuple[slice, mx.array]]:
    """One pass over the blocks of a weight, each with its part of the weight's first axis."""
    start = 0
    for block in blocks():
        stop = start + block.shape[0 if len(unit.shape) > 2 else 1]
        yield slice(start, stop), block
        start = stop


def one_block(unit: Unit, weight: mx.array) -> Blocks:
    """A whole weight as its only block."""
    return partial(iter, (weight.reshape(unit.slices, *unit.shape[-2:]),))


class BlockJob(ABC, Generic[T]):
    """A job that gets a weight block by block, so that no large stack is ever whole."""

    def takes_rows(self, unit: Unit) -> bool:
        """True if a matrix may come in blocks of rows."""
        return False

    def __call__(self, unit: Unit, weight: mx.array) -> T:
        """The result for `unit`, whose evaluated weight is given."""
        return self.of_blocks(unit, one_block(unit, weight))

    @abstractmethod
    def of_blocks(self, unit: Unit, blocks: Blocks) -> T:
        """The result for `unit`, whose weight comes in `blocks`; it is the same for all divisions of the weight."""


class PortableJob(ABC, Generic[T]):
    """A job that another process can do."""

    name: ClassVar[str]  # in logs and in `mint cluster status`
    any_device: ClassVar[bool] = False  # every kind of device may do it; all others do what this process's kind does
    whole_model: ClassVar[bool] = False  # it runs the model: whoever does it needs all of its weights

    @abstractmethod
    def __call__(self, unit: Unit, weight: mx.array) -> T:
        """The result for `unit`, whose evaluated weight is given."""

    def ready(self, units: Sequence[Unit]) -> None:
        """Get ready, before the weights of `units` take memory."""

    @property
    def label(self) -> str:
        """The name and what else makes it fast or slow."""
        return self.name

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The job in values that msgpack can store."""

    @classmethod
    @abstractmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        """The job of these fields, to be done with units of `source`."""

    def prepare(self, previous: "PortableJob[Any] | None") -> None:
        """Compile what is needed, and take over what the `previous` job of this process has opened."""

    @abstractmethod
    def encode(self, result: T) -> Iterable[bytes | memoryview]:
        """A result as bytes, without rounding."""

    @abstractmethod
    def decode(self, unit: Unit, data: memoryview) -> T:
        """The result for `unit` from its bytes."""

    def result_nbytes(self, unit: Unit) -> int:
        """Bytes of an encoded result where they are about as many as those of a weight; else 0."""
        return 0

    def working_bytes(self, unit: Unit) -> int:
        """Memory that a job takes beside a weight and its result."""
        return 0

    def told_nbytes(self) -> int:
        """Bytes of the job itself where they are about as many as those of weights; else 0."""
        return 0

    def memory_bytes(self, source: Source) -> int:
        """Memory that a job with `whole_model` takes."""
        return 0

    def difference(self, one: T, other: T) -> Difference | None:
        """The excessive difference between the results of two kinds of device; for a job of `any_device`."""
        return None


def job_path(job: PortableJob[Any]) -> str:
    """The name by which `load_job` finds the class of a job."""
    return f"{type(job).__module__}:{type(job).__qualname__}"


def load_job(path: str) -> type[PortableJob[Any]]:
    """The class of a job by its name `module:Class`; raises `MintError` for a name that is no portable job."""
    try:
        kind = resolve_name(path)
    except (ValueError, ImportError, AttributeError) as error:
        message = f"no job {path!r} is installed here ({error}); needed: the same packages on every node"
        raise MintError(message) from error
    if not (isinstance(kind, type) and issubclass(kind, PortableJob)):
        raise MintError(f"{path!r} is no job that travels; needed: a subclass of {PortableJob.__name__}")
    return kind
