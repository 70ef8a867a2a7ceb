"""The name of the model of a cached analysis, in a small file beside it.

An analysis holds the content of a model and not its name: a model under two names has one analysis of equal bytes.
The cache names the file by a hash, which tells people nothing.
"""

from pathlib import Path

from mint.core.cache import keep, recall


def write_name(analysis: Path, name: str) -> None:
    """Keep the name of the model that was analyzed last."""
    if read_name(analysis) != name:
        keep(_name_path(analysis), name.encode())


def read_name(analysis: Path) -> str:
    """The name of the model; empty for an analysis that lies where people named it."""
    return recall(_name_path(analysis), bytes.decode) or ""


def _name_path(analysis: Path) -> Path:
    return analysis.with_name(f"{analysis.name}.name")
