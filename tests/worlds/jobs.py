"""Jobs that neither mint nor cluster knows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from mint.analysis.analysis import Measurement
from mint.analysis.unit_jobs import Measure, checksum_of
from mint.formats.units import Unit
from mint.model.source import Source
from mint.run.executor import in_process
from mint.run.job import Blocks, PortableJob


def checksums_of(source: Source) -> dict[str, str]:
    """The checksum of every weight of `source`."""
    checksums = in_process(source, lambda _, weight: checksum_of(weight), source.units)
    return {unit.path: checksum for unit, checksum in checksums}


@dataclass(frozen=True)
class Clipped(PortableJob[tuple[int, float]]):
    """The number of weights beyond `limit`, and the largest magnitude."""

    name: ClassVar[str] = "clipped"
    limit: float

    def __call__(self, unit: Unit, weight: mx.array) -> tuple[int, float]:
        size = mx.abs(weight.astype(mx.float32))
        return int(np.asarray((size > self.limit).sum())), float(np.asarray(size.max()))

    def to_dict(self) -> dict[str, Any]:
        return {"limit": self.limit}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        return cls(fields["limit"])

    def encode(self, result: tuple[int, float]) -> Iterable[bytes]:
        return (np.array(result, "<f8").tobytes(),)

    def decode(self, unit: Unit, data: memoryview) -> tuple[int, float]:
        count, largest = np.frombuffer(data, "<f8").tolist()
        return int(count), largest


@dataclass(frozen=True)
class Skewed(Measure):
    """The errors of a measurement times `factor`, as another kind of device might find them."""

    factor: float = 1.0

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Measurement:
        measurement = super().of_blocks(unit, blocks)
        errors, worst = (
            tuple(error * self.factor for error in part) for part in (measurement.errors, measurement.worst_errors)
        )
        return replace(measurement, errors=errors, worst_errors=worst)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "factor": self.factor}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        return cls(fields["rounding"], fields["factor"])
