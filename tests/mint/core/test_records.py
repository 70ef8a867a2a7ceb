"""A record of a file or a message whose fields are gone or wrong is one error, whatever they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.analysis import _KIND as ANALYSIS
from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe_file import _KIND as PROBES
from mint.analysis.probes.probe_file import Probe, read_probes, write_probed
from mint.core.errors import MintError
from mint.core.journal import SealedKind, read_sealed, write_sealed
from mint.core.records import typed
from mint.model.source import open_source
from mint.plan.allocate import allocate
from tests.worlds.damage import damaged


@dataclass(frozen=True)
class _Record:
    count: int
    share: float
    names: tuple[str, ...]
    sizes: dict[str, int]
    either: str | None = None


def test_a_record_has_the_types_of_its_fields() -> None:
    record = _Record(1, 2, ("a",), {"a": 1})
    assert typed(record) is record
    wrong: list[Any] = [("1", 2, (), {}), (1, "2", (), {}), (1, 2, (1,), {}), (1, 2, [], {}), (1, 2, (), {1: 1})]
    for fields in wrong:
        with pytest.raises(TypeError, match="needed"):
            typed(_Record(*fields))


def _check_damaged(path: Path, kind: SealedKind, use: Callable[[], object]) -> int:
    """Use a finished file with each damage, under a right checksum; only `MintError` comes. Returns the refusals."""
    sealed, refused = read_sealed(path, kind), 0
    for header, first in [
        *((header, sealed.records[0]) for header in damaged(sealed.header)),
        *((sealed.header, record) for record in damaged(sealed.records[0])),
    ]:
        write_sealed(path, kind, header, [first, *sealed.records[1:]])
        try:
            use()
        except MintError:
            refused += 1
    return refused


def test_an_analysis_with_any_field_that_is_gone_or_wrong_is_refused(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mint"
    analyze(open_source(llama), path)
    assert _check_damaged(path, ANALYSIS, lambda: allocate(read_analysis(path), "6bpw")) > 100


def test_probes_with_any_field_that_is_gone_or_wrong_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.probe"
    header = {"schema": PROBES.schema, "model": "m", "tokens": "t", "base": "full", "units": ["up"]}
    write_probed(path, header, {"up": Probe("up", (0.5, 0.25), 0.1)})
    assert _check_damaged(path, PROBES, lambda: read_probes(path).alphas) > 20
