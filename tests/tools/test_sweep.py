"""Every model family of mlx_lm can be tried, and one of each kind of trouble is."""

from pathlib import Path

import pytest

from mint.core.errors import MintError
from mint.model.roles import TOWER, UNKNOWN
from mint.model.source import READ, open_source
from tools.lab.sweep import EXPECTED, LARGEST_SHARE, Row, table, try_family
from tools.models.families import config_of, family_names, modules_of
from tools.models.vision_families import FAMILIES, write_vision_family

# caches shared by layers, and a matrix in another place than its module; caches read outside of layers; a second
# argument that is not experts; weights read without a call
KINDS = ("gemma3n", "afm7", "deepseek_v41", "kimi_k3")


def test_every_model_file_of_mlx_lm_has_a_tiny_model() -> None:
    """A family that a new mlx_lm brings, and that nobody has looked at, fails here."""
    faults = {}
    for family in family_names():
        try:
            modules_of(config_of(family))
        except Exception as error:  # an exception of a model's own code, too
            faults[family] = str(error)
    faults = {family: fault for family, fault in faults.items() if EXPECTED.get(family, "-") not in fault}
    assert not faults


@pytest.mark.parametrize("family", KINDS)
def test_a_family_of_each_kind_passes_every_step(family: str, tmp_path: Path) -> None:
    row = try_family(family, tmp_path)
    assert row.fault == ""
    assert row.kept <= LARGEST_SHARE


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_multimodal_family_keeps_its_towers(family: str, tmp_path: Path) -> None:
    source = open_source(write_vision_family(family, tmp_path / "model"))
    assert (source.loader, source.dropped_towers) == ("mlx_vlm", ())
    assert any(unit.role == TOWER and not unit.stays for unit in source.units)
    assert not any(unit.role == UNKNOWN and unit.keep_reason != READ for unit in source.units)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("family", [pytest.param("gemma3n", marks=pytest.mark.long), "gemma4", "qwen3_5_moe"])
def test_a_multimodal_family_of_each_kind_passes_every_step(family: str, tmp_path: Path) -> None:
    """Another function of several tokens at once; infinite bounds; states computed in every pass."""
    assert try_family(f"mlx_vlm/{family}", tmp_path).fault == ""


def test_a_row_is_expected_only_with_its_own_fault() -> None:
    good, bad = {"inspect": "ok"}, {"inspect": "ok", "probe": "it calls Metal kernels"}
    assert Row("llama", good, 0.0).is_expected
    assert not Row("llama", bad, 0.0).is_expected
    assert Row("bitnet", bad, 0.0).is_expected
    assert not Row("llama", good, 0.5).is_expected


def test_the_table_names_the_step_that_fails() -> None:
    steps = {"inspect": "ok", "quantize": "ok", "quantize small": "too | small", "compensate": "ok", "probe": "ok"}
    lines = table([Row("llama", steps, 0.0)], "0.32").splitlines()
    assert lines[-1] == "| llama | yes | too / small | yes | yes |"


def test_a_family_that_cannot_be_made_says_why() -> None:
    with pytest.raises(MintError, match="2 bits already"):
        config_of("prism_hadamard_qwen35")
