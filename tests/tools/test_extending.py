"""Every example of docs/extending.md runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import ROOT
from tools.models.make_shape import TINY, Shape, qwen3, write_shape

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_extension_point_has_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("\n## ") == PAGE.count("```python")


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_shape(tmp_path / "model", Shape(TINY, qwen3), random=True)
    (tmp_path / "example.py").write_text(EXAMPLES[title])
    command = [sys.executable, "example.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
