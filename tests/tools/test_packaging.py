"""The package builds, has all its files, and runs from its wheel; the files around it name what exists."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from mint.core.version import __version__
from tools.house import PACKAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - {"dev", "docs"})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it. Nothing is downloaded."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def _files() -> set[str]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {p.relative_to(ROOT).as_posix() for p in paths if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == _files()


def test_the_sdist_has_what_a_wheel_is_built_from(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _files() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_metadata_name_version_licence_and_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], __version__)
    assert metadata["License-Expression"] == "MIT"
    assert set(PROJECT["optional-dependencies"]) <= set(metadata.get_all("Provides-Extra", []))
    plain = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert len(plain) == len(PROJECT["dependencies"])


def test_every_package_that_is_imported_is_declared() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]
    declared = {_normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in _imported(path) - set(sys.stdlib_module_names) - set(PACKAGES)
        if not {_normal(distribution) for distribution in distributions.get(name, [name])} & declared
    }
    assert not undeclared


def _imported(path: Path) -> set[str]:
    """The top-level names of everything that a file imports, apart from what only type checkers read."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    unread = {
        id(child) for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }  # fmt: skip
    names = [
        alias.name for node in nodes if isinstance(node, ast.Import) and id(node) not in unread for alias in node.names
    ]
    names += [
        node.module for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and id(node) not in unread
    ]  # fmt: skip
    return {name.partition(".")[0] for name in names}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_the_installed_wheel_quantizes_a_model(wheel: Path, llama: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    # dependencies come from this environment; its own, editable mint does not: only files of `site` are acted on
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    pip = [sys.executable, "-m", "pip", "--python", str(venv), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--quiet", "--disable-pip-version-check", "--ignore-installed"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        command = [str(venv / "bin" / words[0]), *words[1:]]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)

    assert run("mint", "--version") == f"mint {__version__}\n"
    assert run("python", "-c", "import mint, cluster; print(mint.__file__, cluster.__file__)").count(str(site)) == 2
    assert "verified" in run("mint", "quantize", str(llama), "--budget", "400kB", "--quality", "fast", "-o", "out")
    assert "head" in run("mint", "cluster", "up", "--help")  # commands of entry points


def test_the_citation_names_this_version_and_the_published_method() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert all(reference["url"].startswith("https://baa.ai/articles/") for reference in citation["references"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_templates_ask_for_the_report_of_the_machine(path: Path) -> None:
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        return
    required = [field for field in template["body"] if field.get("validations", {}).get("required")]
    assert any("mint doctor --json" in field["attributes"]["label"] for field in required)


def test_the_changelog_has_a_section_for_this_version() -> None:
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == __version__


def test_the_release_runs_the_script_that_people_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert "sh tools/release.sh dist" in [step.get("run") for step in workflow["jobs"]["build"]["steps"]]
    assert workflow[True].keys() == {"push", "workflow_dispatch"}  # YAML 1.1 reads `on` as true
