"""The text tool reads R's character vectors and the handbook's HTML."""

import zlib
from pathlib import Path

import pytest

from mint.core.errors import MintError
from tools.models.make_text import NOVELS, PAGES, make_text

BOOKS = (["EMMA", "", "Emma was handsome,", "clever and rich.", "", "She was — at times — alone."], ["PERSUASION"])
PAGE = """<html><head><title>no prose</title></head><body><p id="title"><a href="x"><img src="y" /></a></p>
<ul><li>Next</li></ul><div class="section"><div class="para">
\tApt is <code class="command">vast</code>,<br> they &amp; we say.<pre class="screen"># apt <b>update</b>
</pre></div><div class="sidebar"><p class="title">Aside</p></div><div class="para">Second.</div></div></body></html>"""


def _serialized(strings: list[str]) -> bytes:
    """An R character vector in XDR, version 3."""

    def integer(value: int) -> bytes:
        return value.to_bytes(4, "big", signed=True)

    head = b"X\n" + integer(3) + integer(0x040201) + integer(0x030500) + integer(5) + b"UTF-8"
    texts = [string.encode() for string in strings]
    flags = [0x40009 if text.isascii() else 0x8009 for text in texts]
    body = [integer(flag) + integer(len(text)) + text for flag, text in zip(flags, texts, strict=True)]
    return head + integer(16) + integer(len(strings)) + b"".join(body)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A tiny folder of both packages."""
    folder = tmp_path / "unpacked"
    records = [_serialized(book) for book in BOOKS]
    (folder / NOVELS).parent.mkdir(parents=True)
    (folder / NOVELS).write_bytes(b"".join(len(each).to_bytes(4, "big") + zlib.compress(each) for each in records))
    (folder / PAGES).mkdir(parents=True)
    (folder / PAGES / "apt.html").write_text(PAGE)
    return folder


def test_lines_become_paragraphs_and_pages_become_prose(unpacked: Path, tmp_path: Path) -> None:
    make_text(tmp_path, unpacked)
    emma = "EMMA\n\nEmma was handsome, clever and rich.\n\nShe was — at times — alone.\n"
    assert (tmp_path / "austen_1.txt").read_text() == emma
    assert (tmp_path / "austen_2.txt").read_text() == "PERSUASION\n"
    assert (tmp_path / "debian_handbook.txt").read_text() == "Apt is vast, they & we say.\n\nSecond.\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x00\x00\x00\x09not deflated", "not deflated"),
        (b"\x00\x00\x00\x09" + zlib.compress(b"X\n" + bytes(12)), "needed R's XDR of version 3"),
        (b"\x00\x00\x00\x09" + zlib.compress(_serialized([])[:23] + bytes(4)), "an R object of type 0"),
    ],
)
def test_another_package_is_refused(content: bytes, complaint: str, unpacked: Path, tmp_path: Path) -> None:
    (unpacked / NOVELS).write_bytes(content)
    with pytest.raises(MintError, match=complaint):
        make_text(tmp_path, unpacked)


def test_a_missing_package_is_named(unpacked: Path, tmp_path: Path) -> None:
    (unpacked / PAGES / "apt.html").unlink()
    with pytest.raises(MintError, match="debian-handbook"):
        make_text(tmp_path, unpacked)
    (unpacked / NOVELS).unlink()
    with pytest.raises(MintError, match="r-cran-janeaustenr"):
        make_text(tmp_path, unpacked)
