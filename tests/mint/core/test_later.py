"""Modules that are imported when they are used."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint.core.later import importing_later


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that takes a class and a function of `<name>_slow`."""
    name = "later_package"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}_slow.py").write_text("class Box:\n    size = 3\ndef double(x): return 2 * x\n")
    lines = (f"from {name}_slow import Box, double", "from typing import Optional", "def f(x: Optional[Box]): ...")
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    yield name
    for module in (name, f"{name}_slow"):
        sys.modules.pop(module, None)


def test_a_module_is_imported_at_the_first_use_of_what_it_defines(slow: str) -> None:
    with importing_later(f"{slow}_slow"):
        package = __import__(slow)
    assert f"{slow}_slow" not in sys.modules
    assert package.double(4) == 8
    assert package.Box.size == 3
    assert f"{slow}_slow" in sys.modules


def test_its_classes_can_be_called_subclassed_and_checked_against(slow: str) -> None:
    with importing_later(f"{slow}_slow"):
        package = __import__(slow)
    real = __import__(f"{slow}_slow")

    class Crate(package.Box):  # type: ignore[misc, name-defined]
        pass

    assert type(package.Box()) is real.Box
    assert Crate.__mro__[1] is real.Box
    assert isinstance(Crate(), package.Box)
    assert not isinstance(4, package.Box)


def test_a_package_that_uses_it_at_its_own_import_gets_it(slow: str, tmp_path: Path) -> None:
    (tmp_path / f"{slow}.py").write_text(f"from {slow}_slow import double\neight = double(4)\n")
    with importing_later(f"{slow}_slow"):
        assert __import__(slow).eight == 8


def test_a_module_that_is_there_stays(slow: str) -> None:
    real = __import__(f"{slow}_slow")
    with importing_later(f"{slow}_slow"):
        assert __import__(slow).Box is real.Box


def test_opening_a_model_imports_no_tokenizers_and_reading_one_does() -> None:
    code = """
import sys
from pathlib import Path
from mint.model.module_tree import read_tokenizer
heavy = "transformers", "tokenizers", "huggingface_hub"
print([name for name in heavy if name in sys.modules])
try:
    read_tokenizer(Path("."))  # there is none
except Exception:
    pass
print([name for name in heavy if name not in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]")
