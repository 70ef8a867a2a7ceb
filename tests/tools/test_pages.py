"""Generated pages, tables and pictures are those of the program and of the committed results."""

import re

import pytest

from tools.house import ROOT
from tools.pages.__main__ import main
from tools.pages.commands import commands
from tools.pages.pictures import Comparison, closeness_picture, read_comparisons
from tools.pages.tables import TABLES, with_tables

RESULTS = ROOT / "docs" / "results" / "closeness.toml"


def test_the_committed_pages_are_those_of_the_program() -> None:
    assert main(["--check"]) == 0, "run python -m tools.pages"


def test_the_page_of_commands_has_every_option_of_every_command() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(commands())
    for path, command in commands().items():
        options = {name for parameter in command.params if parameter.name != "help" for name in parameter.opts}
        assert not [name for name in options if name.startswith("-") and f"`{name}`" not in sections[path]], path


def test_every_table_stands_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"<!-- table: (\w+) -->", pages)) == set(TABLES)


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        with_tables("<!-- table: nothing -->\n<!-- end -->")


def test_bars_are_as_long_as_their_numbers() -> None:
    picture = closeness_picture([Comparison("one size", (("other", 0.4), ("MINT", 0.1)))])
    other, ours = (float(width) for width in re.findall(r'<rect .*? width="([\d.]+)"', picture))
    assert other == pytest.approx(4 * ours, rel=0.01)


def test_the_numbers_of_the_picture_stand_on_the_page_of_benchmarks() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for comparison in read_comparisons(RESULTS):
        assert not [kl for _, kl in comparison.bars if f"{kl:g}" not in page], comparison.title


def test_the_first_screen_of_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = re.findall(r"\S*\w\S*", readme.partition("\n## More\n")[0])
    assert len(words) < 400
    assert "sh tools/demo.sh" in readme
    assert "sh tools/test.sh" in readme
