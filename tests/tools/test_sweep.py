"""Every model family of mlx_lm can be tried, and one of each kind of trouble is."""

from pathlib import Path

import pytest

from mint.core.errors import MintError
from tools.lab.sweep import EXPECTED, LARGEST_SHARE, Row, table, try_family
from tools.models.families import config_of, family_names, modules_of

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
