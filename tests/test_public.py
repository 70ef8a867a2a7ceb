"""The verbs as Python functions, as the README documents them."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("first", ["from mint.pipeline import quantize", "import mint.assembly.verify", "pass"])
def test_a_verb_is_a_function_whatever_was_imported_before(first: str) -> None:
    names = (
        "allocate analyze assemble curve device diff evaluate explain objective open_source parse_budget parse_size "
        "probe probe_path quantize read_analysis read_plan read_probes verify write_plan"
    )
    code = (
        f"{first}\nimport mint\nprint([n for n in '{names}'.split() if type(getattr(mint, n)).__name__ != 'function'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_pipeline_reads_as_the_readme_says(llama: Path, tmp_path: Path) -> None:
    from mint import Recipe, allocate, analyze, assemble, open_source, parse_size, verify

    source = open_source(llama)
    analysis = analyze(source, tmp_path / "llama.mint")
    plan = allocate(analysis, parse_size("400kB"), Recipe(min_bits=3))
    manifest = assemble(plan, source, tmp_path / "out")
    assert manifest.weight_bytes == plan.planned_bytes <= 400_000
    assert verify(tmp_path / "out", source).passed
