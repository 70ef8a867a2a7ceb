"""Executors made of functions: they measure where this process does, unless they name other devices."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint.formats.units import Unit
from mint.model.source import Source
from mint.run.executor import in_process
from mint.run.job import Job, T


@dataclass(frozen=True)
class FunctionExecutor:
    """An executor that does jobs by calling `function`."""

    function: Callable[..., Iterator[tuple[Unit, Any]]]
    devices: Sequence[str] = field(default_factory=lambda: in_process.devices)
    made_by: Mapping[str, str] = field(default_factory=lambda: in_process.made_by)
    lacking: Sequence[str] = ()
    model_memory: int = field(default_factory=lambda: in_process.model_memory)

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        return self.function(source, job, units)
