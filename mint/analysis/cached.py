"""The place of analyses in the cache folder, and the probes of a cached one: they serve all roundings of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.analysis.analysis import SCHEMA, Analysis
from mint.analysis.probes.probe_file import Probed, probes_beside
from mint.core.cache import cached_path
from mint.formats.rounding import DEFAULT_ROUNDING

if TYPE_CHECKING:
    from mint.model.source import Source


def cached_analysis(source: "Source", rounding: str = DEFAULT_ROUNDING, *, device: str = "") -> Path:
    """The file in the cache folder for the analysis of this very model and rounding by these versions.

    `device` is the kind, or kinds, that measured; this process's own by default.
    """
    from mint.run.device_kind import device_kind, versions  # imports mlx, which a plan does not need

    made_by = device or device_kind(), versions(source.packages)
    return _path(source.identity, source.dtype, source.loader, rounding, *made_by)


def probes_of(analysis: Analysis, path: Path) -> Probed | None:
    """The probes beside the analysis at `path`; of one in the cache also those beside that of the default rounding."""
    probed = probes_beside(path)
    if probed:
        return probed
    made_by = analysis.device, analysis.versions
    other = _path(analysis.model, analysis.dtype, analysis.loader, DEFAULT_ROUNDING, *made_by)
    return probes_beside(other) if path.absolute().parent == other.absolute().parent else None


def _path(
    identity: str, dtype: str, loader: str, rounding: str, device: str, package_versions: Mapping[str, str]
) -> Path:
    key: tuple[Any, ...] = (SCHEMA, identity, dtype, loader, rounding, device, dict(package_versions))
    return cached_path("analyses", ".mint", *key)
