"""A second budget copies what did not change."""

from pathlib import Path

import pytest

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.reuse import Reuse
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan


@pytest.fixture(scope="module")
def source(llama: Path) -> Source:
    return open_source(llama)


@pytest.fixture(scope="module")
def analysis(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(source, tmp_path_factory.mktemp("analysis") / "a.mint")


@pytest.fixture(scope="module")
def first(analysis: Analysis, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "out"
    assemble(allocate(analysis, "0.4x"), source, folder)
    return folder


def _weights(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def _same(before: Plan, after: Plan) -> int:
    formats = {choice.path: choice.format for choice in before.choices}
    return sum(choice.format == formats[choice.path] for choice in after.choices)


def test_units_with_the_same_format_are_copied_and_the_bytes_are_the_same(
    analysis: Analysis, source: Source, first: Path, tmp_path: Path
) -> None:
    plan = allocate(analysis, "0.42x")
    anew = assemble(plan, source, tmp_path / "anew")
    reuse = Reuse([first])
    copied = assemble(plan, source, tmp_path / "copied", reuse=reuse)
    assert reuse.units == _same(allocate(analysis, "0.4x"), plan) > 0
    assert reuse.nbytes > 0
    assert _weights(tmp_path / "copied") == _weights(tmp_path / "anew")
    assert copied == anew
    assert verify(tmp_path / "copied", source).passed


def test_a_folder_whose_bytes_changed_is_not_trusted(
    analysis: Analysis, source: Source, first: Path, tmp_path: Path
) -> None:
    plan = allocate(analysis, "0.4x")
    damaged = tmp_path / "damaged"
    assemble(plan, source, damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    reuse = Reuse([damaged])
    assemble(plan, source, tmp_path / "out", reuse=reuse)
    assert reuse.units == len(plan.choices) - 1
    assert _weights(tmp_path / "out") == _weights(first)


def test_a_folder_of_another_model_is_not_used(analysis: Analysis, source: Source, first: Path, tmp_path: Path) -> None:
    other = open_source(source.folder, dtype="float16")
    measured = analyze(other, tmp_path / "b.mint")
    reuse = Reuse([first])
    assemble(allocate(measured, "0.4x"), other, tmp_path / "out", reuse=reuse)
    assert reuse.units == 0


def test_a_folder_that_mint_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"no mint\.json found"):
        Reuse([tmp_path])
