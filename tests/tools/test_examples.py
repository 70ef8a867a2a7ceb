"""Every Python example of the documents runs, and so does every command that needs no other machine and no person."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mint.cli.main import run_command
from mint.cli.settings import option_defaults, settings_file
from tests.tools.test_docs import PAGES
from tools.house import ROOT
from tools.models.make_shape import write_shape
from tools.models.shapes import TINY, Shape, qwen3

EXTENDING = ROOT / "docs" / "extending.md"
EXAMPLES = dict(
    re.findall(r"^## (.*?)\n(?:(?!^## ).)*?^```python\n(.*?)^```", EXTENDING.read_text(), re.MULTILINE | re.DOTALL)
)
MODELS = ("models/Qwen3-8B", "Qwen/Qwen3-8B", "build/demo/SmolLM2-135M-Instruct")  # of the pages: tiny ones here
RESULTS = ("Qwen3-8B-6GB", "Qwen3-8B-5GB")  # of pages that do not make them
# beginnings of commands that are not run here, and the reason; tests of their own have those of mint
NOT_RUN = {
    "apt-get": "installs", "pip": "installs", "uv": "installs", "uvx": "installs", "pre-commit": "installs",
    "python3.11": "installs", ".": "sets up a shell", "export": "sets up a shell", "chmod": "sets up a file",
    "mkdir": "sets up a folder", "sh tools/": "is run by the checks themselves", "ruff": "is a check",
    "lint-imports": "is a check", "mypy": "is a check", "mkdocs": "is a check", "pytest": "is a check",
    "python": "takes minutes",
    "docker": "needs a daemon", "MODELS=/": "needs a daemon",
    "hf": "needs the network", "mlx_lm.chat": "waits for a person", "mint serve": "serves (tests/service)",
    "mint service": "needs a service (tests/service)",
    "mint token": "is for a service (tests/service)", "mint submit": "needs a service (tests/service)",
    "mint jobs": "needs a service (tests/service)", "mint cluster": "needs machines (tests/cluster)",
    "mint -v": "takes minutes", "mint upload": "needs the hub (tests/mint/exports)",
}  # fmt: skip
ELSEWHERE = {"--server", "--cluster"}  # options that ask other machines


def python_examples() -> Iterator[Any]:
    """The examples of every page, those of one page together; `extending.md` has one per section."""
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if blocks and page != EXTENDING:
            yield pytest.param("\n".join(blocks), id=page.name)


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the shell blocks and terminal sessions of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^\$ (.*)", text, re.MULTILINE)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def reason_not_to_run(words: list[str]) -> str:
    line = " ".join(words)
    if words[0] == "mint" and ELSEWHERE & set(words):
        return "asks other machines"
    if "MODEL" in words:
        return "stands for any model"
    starts = {start: start if start.endswith("/") else f"{start} " for start in NOT_RUN}
    return next((reason for start, reason in NOT_RUN.items() if f"{line} ".startswith(starts[start])), "")


LARGE = ROOT / "docs" / "large-shapes.md"  # makes models of gigabytes
SHELL_PAGES = [
    page for page in PAGES if page not in (EXTENDING, LARGE) and any(not reason_not_to_run(c) for c in commands(page))
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A folder with the models, texts and results that the pages speak of."""
    folder = tmp_path_factory.mktemp("world")
    for name in MODELS:
        shutil.copytree(llama, folder / name)
    (folder / "notes.txt").write_text("It is a truth universally acknowledged. " * 500)
    for name in RESULTS:
        assert run_command(["quantize", str(llama), "--budget", "max", "--output", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    folder.mkdir()
    write_shape(folder, Shape(TINY, qwen3), random=True)
    return folder


def run(example: str, folder: Path, model: Path, name: str) -> None:
    """Run `example` in `folder`, where `model` is called `name`."""
    shutil.copytree(model, folder / name)
    (folder / "example.py").write_text(example)
    result = subprocess.run([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_extension_point_has_an_example() -> None:
    page = EXTENDING.read_text(encoding="utf-8")
    assert len(EXAMPLES) == page.count("\n## ") == page.count("```python")


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_of_an_extension_runs(title: str, tmp_path: Path, tiny: Path) -> None:
    run(EXAMPLES[title], tmp_path, tiny, "model")


@pytest.mark.parametrize("example", list(python_examples()))
def test_the_python_of_a_page_runs(example: str, tmp_path: Path, tiny: Path) -> None:
    run(example, tmp_path, tiny, MODELS[0])


@pytest.mark.parametrize("page", SHELL_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_run = [words for words in commands(page) if not reason_not_to_run(words)]
    made = {word for words in to_run if "--output" in words for word in words}
    shutil.copytree(world, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*made & set(RESULTS)))
    monkeypatch.chdir(tmp_path)
    for words in to_run:
        if words[0] == "mint":
            code, shown = run_command(words[1:]), "".join(capsys.readouterr())
        else:
            assert words[0].startswith("mlx_lm."), f"{words[0]}: add it to NOT_RUN with a reason, or run it"
            command = [sys.executable, "-m", *words[0].split("."), *words[1:]]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            code, shown = result.returncode, result.stdout + result.stderr
        assert code == 0, f"{' '.join(words)}: {shown}"


def test_the_settings_file_of_the_page_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    from mint.cli.main import app

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in example.split("[")[0].splitlines():
        if line:
            monkeypatch.setenv(f"MINT_{line.split()[0].upper()}", "set")  # the file leaves set variables alone
    settings_file().parent.mkdir(parents=True, exist_ok=True)
    settings_file().write_text(example)
    assert option_defaults(app) == {"quantize": {"context": "32k"}}
