"""Commands, options, modules, files and links that the documents name exist."""

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mint.cli.main import app
from tools.house import ROOT

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name not in ("CHANGELOG.md", "LICENSE")
)
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def _commands() -> dict[str, Any]:
    main = get_command(app)
    assert isinstance(main, TyperGroup)
    plugins = {point.name: get_command(point.load()) for point in entry_points(group="mint.commands")}
    return {**main.commands, **plugins}


COMMANDS = _commands()


def _code(page: Path) -> Iterator[str]:
    """Lines of shell blocks, and code in the running text."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield from (line.split("#")[0].strip() for line in block.splitlines())
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", _without_blocks(page)))


def _without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def _options(words: list[str]) -> list[str]:
    return [option for word in words if (option := word.strip("[],()").split("=")[0]).startswith("--")]


@PAGE
def test_every_mint_command_exists_with_its_options(page: Path) -> None:
    for line in _code(page):
        words = line.split()
        if words[:1] != ["mint"] or len(words) == 1 or words[1].startswith("-"):
            continue
        command, rest = COMMANDS[words[1]], words[2:]
        while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert not set(_options(rest)) - known - {"--help"}, line


@PAGE
def test_every_tool_exists_with_its_options(page: Path) -> None:
    for line in _code(page):
        for name, rest in re.findall(r"python -m (tools\.[\w.]+)(.*)", line):
            spec = find_spec(name)
            assert spec and spec.origin, line
            source = Path(spec.origin).read_text(encoding="utf-8")
            assert not [option for option in _options(rest.split()) if f'"{option}"' not in source], line


@PAGE
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    names = {
        code
        for code in _code(page)
        if re.fullmatch(r"(mint|cluster|tools|tests|docs)/[\w./-]+", code) and "*" not in code
    }
    assert not [name for name in sorted(names) if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()]


@PAGE
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    text = _without_blocks(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (page.parent / name) if name else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_messages_that_the_page_of_troubles_quotes_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quotes = [text.strip(". ") for symptom in symptoms for text in re.findall(r'"([^"]+)"', symptom)]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mint").rglob("*.py"))
    words = re.sub(r"[\"'{}\s]+", " ", re.sub(r'"\s*\n\s*f?"', "", source))
    assert quotes
    assert not [quote for quote in quotes if re.sub(r"\s+", " ", quote) not in words]


def test_the_page_of_the_output_explains_every_line_of_the_end() -> None:
    page = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    summary = (ROOT / "mint" / "render" / "summary.py").read_text(encoding="utf-8")
    end = summary.partition("def model_summary")[2].partition("def plan_summary")[0]
    judgement = summary.partition("def _judgement")[2].partition("def _converted_text")[0]
    labels = set(re.findall(r'Line\("([\w-]+)"', end + judgement)) - {"loss"}
    assert not [label for label in sorted(labels) if f"| `{label}` |" not in page]
