"""Checks the rules of the code base that no ready-made linter knows.

    python -m tools.house [CHECK ...]      all checks of the table `CHECKS`, or those named

Prints one line per violation and exits with 1 if there is any. docs/contributing.md explains the rules.
"""

import argparse
import ast
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("mint", "cluster")
MAX_FILES = 12
MAX_LINES = 400
LARGE_ROOMS = ("mint/kernels", "cluster/service/http")  # one subject of many small files each
RELATIVE = re.compile(r"\W*(who|whoever|whose|whether|what|whatever|how)\b", re.IGNORECASE)

Violations = Iterator[str]


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    names = parser.parse_args(arguments).checks or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"unknown checks: {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    violations = [violation for name in names for violation in CHECKS[name](ROOT)]
    print("\n".join(violations) or f"no violations of: {', '.join(names)}")
    return int(bool(violations))


def large_rooms(root: Path) -> Violations:
    """Yield every folder of the packages with too many Python files."""
    for folder in _folders(root):
        name = folder.relative_to(root).as_posix()
        count = len(list(folder.glob("*.py")))
        if count > MAX_FILES and name not in LARGE_ROOMS:
            yield f"{name}: {count} Python files, at most {MAX_FILES}; divide the room by subject"


def long_files(root: Path) -> Violations:
    """Yield every file of the packages with too many lines."""
    for path in _files(root, PACKAGES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(root).as_posix()}: {lines} lines, at most {MAX_LINES}; divide the file by subject"


def relative_openings(root: Path) -> Violations:
    """Yield every docstring and comment that begins with a relative clause."""
    for path in _files(root, (*PACKAGES, "tools", "tests")):
        for line, text in sorted([*_docstrings(path), *_comments(path)]):
            if RELATIVE.match(text):
                opening = text.strip().splitlines()[0][:60]
                yield f"{path.relative_to(root).as_posix()}:{line}: begin with a subject or a verb, not with: {opening}"


CHECKS: dict[str, Callable[[Path], Violations]] = {
    "rooms": large_rooms,
    "length": long_files,
    "english": relative_openings,
}


def _folders(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted({path.parent for path in (root / package).rglob("*.py")})


def _files(root: Path, packages: tuple[str, ...]) -> Iterator[Path]:
    for package in packages:
        yield from sorted((root / package).rglob("*.py"))


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of all docstrings of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                yield first.lineno, str(first.value.value)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of all comments; of a block of lines only the first, since the others continue it."""
    last = 0
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                begins_line = not token.line[: token.start[1]].strip()
                if not (begins_line and last == token.start[0] - 1):
                    yield token.start[0], token.string.lstrip("#:! ")
                last = token.start[0]


if __name__ == "__main__":
    sys.exit(main())
