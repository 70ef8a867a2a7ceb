"""The command that installs an extra works for this installation: MINT may be on no index."""

import importlib.metadata
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from mint.core.version import install_command

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (
            '{"url": "file:///src/my%20mint", "dir_info": {"editable": true}}',
            "pip install -e '/src/my mint[gguf]' --config-settings editable_mode=compat",
        ),
        ('{"url": "file:///src/mint", "dir_info": {}}', "pip install '/src/mint[gguf]'"),
        (
            '{"url": "file:///w/mint_mlx-0.1.0-py3-none-any.whl", "archive_info": {}}',
            "pip install '/w/mint_mlx-0.1.0-py3-none-any.whl[gguf]'",
        ),
        ('{"url": "https://example.org/mint.git", "vcs_info": {"vcs": "git"}}', "pip install 'mint-mlx[gguf]'"),
        (None, "pip install 'mint-mlx[gguf]'"),
    ],
)
def test_an_extra_comes_from_where_mint_came_from(
    origin: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    assert install_command("gguf") == command


def test_without_an_installation_the_index_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_command("report") == "pip install 'mint-mlx[report]'"


def test_no_message_names_an_extra_in_other_words() -> None:
    files = [path for room in ("mint", "cluster") for path in (ROOT / room).rglob("*.py")]
    assert not [path for path in files if re.search(r"mint-mlx\[\w+\]'", path.read_text(encoding="utf-8"))]


def test_every_editable_installation_is_one_that_a_folder_called_mint_does_not_hide() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tools").rglob("*.sh")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    editable = [line for line in lines if re.search(r"pip.? install .*-e ", line)]
    assert len(editable) > 2
    assert not [line for line in editable if "editable_mode=compat" not in line]
