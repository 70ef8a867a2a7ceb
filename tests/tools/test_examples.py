"""Every example of docs/extending.md runs, and so does the README's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import ROOT
from tools.models.make_shape import write_shape
from tools.models.shapes import TINY, Shape, qwen3

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def run(example: str, folder: Path, model: str) -> None:
    """Run `example` in `folder`, where `model` is a small model."""
    (folder / model).mkdir(parents=True)
    write_shape(folder / model, Shape(TINY, qwen3), random=True)
    (folder / "example.py").write_text(example)
    result = subprocess.run([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_extension_point_has_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("\n## ") == PAGE.count("```python")


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title: str, tmp_path: Path) -> None:
    run(EXAMPLES[title], tmp_path, "model")


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    run(example, tmp_path, "models/Qwen3-8B")
