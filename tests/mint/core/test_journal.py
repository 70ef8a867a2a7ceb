from pathlib import Path
from zlib import crc32

import pytest

from mint.core.errors import MintError
from mint.core.journal import Journal, Sealed, SealedKind, frame, read_frames, read_header, read_sealed, write_sealed

MAGIC = b"test journal\n"
HEADER = {"model": "abc", "schema": 1}
RECORDS = [{"n": n, "data": bytes(range(n))} for n in range(6)]


def _write(path: Path) -> bytes:
    with Journal(path, MAGIC, HEADER) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    _write(tmp_path / "j")
    with Journal(tmp_path / "j", MAGIC, HEADER) as journal:
        assert journal.records == RECORDS


def test_cut_at_any_byte_it_goes_on_from_the_last_whole_record(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole")
    for length in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:length])
        with Journal(path, MAGIC, HEADER) as journal:
            records = journal.records
            assert records == RECORDS[: len(records)]
            for record in RECORDS[len(records) :]:
                journal.append(record)
        assert path.read_bytes() == whole


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole")
    start = len(MAGIC) + len(frame(HEADER))
    for position in range(start, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        records = [record for record, _ in read_frames(bytes(damaged), start)]
        assert records == RECORDS[: len(records)]
        assert len(records) < len(RECORDS)


@pytest.mark.parametrize(
    "tail", [bytes(1), bytes(8), bytes(4096), b"\x01\x00\x00\x00" + crc32(b"\xc1").to_bytes(4, "little") + b"\xc1"]
)
def test_a_tail_that_a_power_cut_left_ends_the_journal(tail: bytes, tmp_path: Path) -> None:
    """Zeros make frames of length 0 whose checksum is right; the last is a sound frame that is no msgpack."""
    path = tmp_path / "j"
    whole = _write(path)
    path.write_bytes(whole + tail)
    with Journal(path, MAGIC, HEADER) as journal:
        assert journal.records == RECORDS
    assert path.read_bytes() == whole


def test_a_sealed_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    kind = SealedKind(MAGIC, 1, "a test file", "make test", "test again")
    path = tmp_path / "sealed"
    digest = write_sealed(path, kind, HEADER, RECORDS)
    assert read_sealed(path, kind) == Sealed(HEADER, RECORDS, digest)
    assert read_header(path, MAGIC) == HEADER
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MintError, match=r"not a test file|of schema|damaged"):
            read_sealed(path, kind)
        assert read_header(path, MAGIC) in (HEADER, None)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"my thesis, chapter one")
    with pytest.raises(MintError, match="did not write"):
        Journal(path, MAGIC, HEADER)
    assert path.read_bytes() == b"my thesis, chapter one"


def test_a_journal_of_another_model_is_refused_with_the_difference(tmp_path: Path) -> None:
    before = _write(tmp_path / "j")
    with pytest.raises(MintError, match="model: found abc, needed xyz"):
        Journal(tmp_path / "j", MAGIC, {**HEADER, "model": "xyz"})
    assert (tmp_path / "j").read_bytes() == before


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", MAGIC, HEADER), pytest.raises(MintError, match="another mint"):
        Journal(tmp_path / "j", MAGIC, HEADER)
