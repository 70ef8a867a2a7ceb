"""The house lint finds what it is for, and the repository passes the checks that are switched on."""

import re
from pathlib import Path

import pytest

from tools.house import CHECKS, ROOT, large_rooms, long_files, main, relative_openings


def make_root(root: Path, files: dict[str, str]) -> Path:
    """Write `files` below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("word", ["Who", "what", "WHETHER", "How", "Whose", "`What"])
def test_a_docstring_that_begins_with_a_relative_is_named_with_its_line(tmp_path: Path, word: str) -> None:
    root = make_root(tmp_path, {"mint/a.py": f'"""Sizes."""\n\n\ndef f() -> None:\n    """{word} is here?"""\n'})
    assert [line.split(" ")[0] for line in relative_openings(root)] == ["mint/a.py:5:"]


@pytest.mark.parametrize("package", ["mint", "cluster", "tools", "tests"])
def test_a_comment_that_begins_with_a_relative_is_named_in_every_package(tmp_path: Path, package: str) -> None:
    root = make_root(tmp_path, {f"{package}/a.py": "x = 1  # how many\n\n# Whether it is\n# what it was\ny = 2\n"})
    assert [line.split(" ")[0] for line in relative_openings(root)] == [f"{package}/a.py:1:", f"{package}/a.py:3:"]


@pytest.mark.parametrize("text", ["However", "Whole", "Whatnot", "Bytes of what is stored", "Knows who asks"])
def test_other_openings_pass(tmp_path: Path, text: str) -> None:
    root = make_root(tmp_path, {"mint/a.py": f'"""{text}."""\n# {text}\nx = "# what a string says"\n'})
    assert not list(relative_openings(root))


def test_a_room_has_at_most_twelve_files_unless_it_is_one_of_the_large_ones(tmp_path: Path) -> None:
    for room, count in {"mint/plan": 12, "mint/kernels": 13, "cluster/ops": 13}.items():
        make_root(tmp_path, {f"{room}/f{number}.py": "" for number in range(count)})
    assert [line.split(":")[0] for line in large_rooms(tmp_path)] == ["cluster/ops"]


def test_a_file_has_at_most_400_lines(tmp_path: Path) -> None:
    make_root(tmp_path, {"mint/a.py": "x = 1\n" * 400, "mint/b.py": "x = 1\n" * 401, "tests/c.py": "x = 1\n" * 500})
    assert [line.split(":")[0] for line in long_files(tmp_path)] == ["mint/b.py"]


def test_the_repository_passes_the_checks_that_its_test_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    line = re.search(r"python -m tools\.house(.*)", (ROOT / "tools" / "test.sh").read_text())
    assert line
    assert main(line[1].split()) == 0, capsys.readouterr().out


def test_an_unknown_check_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["spelling"])
    message = capsys.readouterr().err
    assert all(name in message for name in CHECKS)
