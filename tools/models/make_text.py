"""Makes plain English text to evaluate models on: six novels and a handbook, from two Debian packages.

    python -m tools.models.make_text OUT [--unpacked FOLDER]

r-cran-janeaustenr holds Jane Austen's six novels (public domain) as R character vectors, debian-handbook the
Debian Administrator's Handbook (GPL-2+ or CC-BY-SA-3.0) as HTML. Both are fetched with `apt-get download` and
unpacked with `dpkg-deb -x`; on other systems, give the folder of the unpacked packages.

Models have probably seen both texts in training: use them for differences between models, not for absolute claims.
"""

import argparse
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.core.errors import MintError
from tools.models.make_smollm2 import new_folder, say

PACKAGES = ("r-cran-janeaustenr", "debian-handbook")
NOVELS = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
PAGES = "usr/share/doc/debian-handbook/html/en-US"
_CHARACTER_VECTOR, _STRING = 16, 9  # R's STRSXP and CHARSXP
_VOID = {"br", "img", "hr", "meta", "link", "input", "col"}


def make_text(folder: Path, unpacked: Path) -> None:
    """Fill the empty `folder` with austen_1.txt ... and debian_handbook.txt from `unpacked` packages."""
    for number, lines in enumerate(read_novels(unpacked / NOVELS), start=1):
        write(folder / f"austen_{number}.txt", paragraphs(lines))
    write(folder / "debian_handbook.txt", "\n\n".join(filter(None, read_pages(unpacked / PAGES))))


def fetch(folder: Path) -> None:
    """Fetch the packages and unpack them into `folder`; `MintError` without apt-get, dpkg-deb or a network."""
    _run(["apt-get", "download", *PACKAGES], folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "-x", package.name, "."], folder)


def _run(command: list[str], folder: Path) -> None:
    elsewhere = f"unpack the packages {', '.join(PACKAGES)} elsewhere and give their folder with --unpacked"
    say(" ".join(command))
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MintError(f"no {command[0]} on this machine; needed: Debian or Ubuntu. Or {elsewhere}") from error
    if done.returncode:
        raise MintError(f"{command[0]} failed: {done.stderr.strip()}\nRun apt-get update, or {elsewhere}")


def read_novels(file: Path) -> Iterator[list[str]]:
    """The lines of every novel in R's lazy-load database: records of a length (4 bytes) and deflated XDR."""
    if not file.is_file():
        raise MintError(f"{file} is not there; needed: the package {PACKAGES[0]}, unpacked with dpkg-deb -x")
    content = file.read_bytes()
    while content:
        inflate = zlib.decompressobj()
        try:
            record = inflate.decompress(content[4:])
        except zlib.error as error:
            raise MintError(f"{file} is not deflated as expected ({error}); needed: {PACKAGES[0]} 1.0.0") from error
        content = inflate.unused_data
        yield character_vector(record)


def character_vector(record: bytes) -> list[str]:
    """The strings of a serialized R character vector (R Internals, "Serialization Formats": XDR, version 3)."""
    position = 2  # after "X\n"

    def integer() -> int:
        nonlocal position
        position += 4
        return int.from_bytes(record[position - 4 : position], "big", signed=True)

    def string(nbytes: int) -> str:
        nonlocal position
        position += nbytes
        return record[position - nbytes : position].decode("utf-8")

    version, _, _ = integer(), integer(), integer()
    if record[:2] != b"X\n" or version != 3:
        raise MintError(f"serialized as {record[:2]!r}, version {version}; needed R's XDR of version 3")
    string(integer())  # the name of the encoding
    if (kind := integer() & 0xFF) != _CHARACTER_VECTOR:
        raise MintError(f"an R object of type {kind}; needed {_CHARACTER_VECTOR}, a character vector")
    strings = []
    for _ in range(integer()):
        assert integer() & 0xFF == _STRING
        strings.append(string(max(integer(), 0)))  # -1 is a missing string
    return strings


def paragraphs(lines: list[str]) -> str:
    """Lines of a book as text: an empty line ends a paragraph."""
    joined = re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(lines))
    return re.sub(r"\n\n+", "\n\n", joined).strip()


def read_pages(folder: Path) -> Iterator[str]:
    """The prose of every page of the handbook."""
    files = sorted(folder.glob("*.html"))
    if not files:
        raise MintError(f"{folder} holds no pages; needed: the package {PACKAGES[1]}, unpacked with dpkg-deb -x")
    for file in files:
        reader = _Prose()
        reader.feed(file.read_text(encoding="utf-8"))
        yield "\n\n".join(filter(None, (" ".join(text.split()) for text in reader.paragraphs)))


class _Prose(HTMLParser):
    """Collects the text of paragraphs (`<div class="para">`), without code listings and navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open: list[bool] = []  # for every open element: true if it begins a paragraph
        self._skipped = 0  # depth within a listing

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            return
        begins = dict(attrs).get("class") == "para"
        if begins:
            self.paragraphs.append("")
        self._open.append(begins)
        self._skipped += tag == "pre" or self._skipped > 0

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID and self._open:
            self._open.pop()
            self._skipped -= self._skipped > 0

    def handle_data(self, data: str) -> None:
        if any(self._open) and not self._skipped:
            self.paragraphs[-1] += data


def write(path: Path, text: str) -> None:
    """Write a text and print its length."""
    path.write_text(text + "\n", encoding="utf-8")
    say(f"{path.name}: {len(text):,} characters")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make plain English text from two Debian packages.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--unpacked", type=Path, metavar="FOLDER", help="packages unpacked with dpkg-deb -x")
    options = parser.parse_args()
    try:
        with new_folder(options.out) as folder, TemporaryDirectory() as fetched:
            if not options.unpacked:
                fetch(Path(fetched))
            make_text(folder, options.unpacked or Path(fetched))
    except MintError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
