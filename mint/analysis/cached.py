"""The place of analyses in the cache folder, and the probes of a cached one: they serve all roundings of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint.analysis.analysis import SCHEMA, Analysis
from mint.analysis.probes.probe_file import Probed, probes_beside
from mint.core.cache import cached_path
from mint.formats.rounding import DEFAULT_ROUNDING
from mint.model.source import Source
from mint.run.device_kind import device_kind, versions


def cached_analysis(source: Source, rounding: str = DEFAULT_ROUNDING, *, device: str = "") -> Path:
    """The file in the cache folder for the analysis of this very model and rounding by these versions.

    `device` is the kind, or kinds, that measured; this process's own by default.
    """
    return _path(source, rounding, device or device_kind(), versions(source.packages))


def probes_of(analysis: Analysis, path: Path) -> Probed | None:
    """The probes beside the analysis at `path`; of one in the cache also those beside that of the default rounding."""
    probed = probes_beside(path)
    if probed:
        return probed
    other = _path(analysis, DEFAULT_ROUNDING, analysis.device, analysis.versions)
    return probes_beside(other) if path.absolute().parent == other.absolute().parent else None


def _path(model: Source | Analysis, rounding: str, device: str, made_by: Mapping[str, str]) -> Path:
    identity = model.model if isinstance(model, Analysis) else model.identity
    key: tuple[Any, ...] = (SCHEMA, identity, model.dtype, model.loader, rounding, device, dict(made_by))
    return cached_path("analyses", ".mint", *key)
