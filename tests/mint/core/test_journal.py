import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.journal import (
    Journal,
    Sealed,
    SealedKind,
    frame,
    read_frames,
    read_header,
    read_sealed,
    remove_stray,
    write_sealed,
)

MAGIC = b"test journal\n"
HEADER = {"model": "abc", "schema": 1}
KIND = SealedKind(MAGIC, 1, "a test file", "make test", "test again")
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
    kind, path = KIND, tmp_path / "sealed"
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
    fault = r"j: begun for something else \(model: found abc, needed xyz, schema: found 1, needed 2\); choose"
    with pytest.raises(MintError, match=fault):
        Journal(tmp_path / "j", MAGIC, {"model": "xyz", "schema": 2})
    assert (tmp_path / "j").read_bytes() == before


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", MAGIC, HEADER), pytest.raises(MintError, match="another mint"):
        Journal(tmp_path / "j", MAGIC, HEADER)


@pytest.mark.parametrize(
    ("begun", "fault"),
    [
        (["no", "header"], r"\(its header is not ours\)"),
        (dict.fromkeys("abcde", 0), r"\(a: found 0, needed 1, b: found 0, needed 1, c: found 0, needed 1\)"),
        ({"a": "x" * 99}, rf"\(a: found {'x' * 60}, needed 1, b: found None"),
    ],
)
def test_the_first_three_differences_are_named_and_long_ones_are_cut(begun: Any, fault: str, tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(MAGIC + frame(begun))
    with pytest.raises(MintError, match=fault):
        Journal(tmp_path / "j", MAGIC, dict.fromkeys("abcde", 1))


def test_a_refused_journal_is_free_for_others(tmp_path: Path) -> None:
    _write(tmp_path / "j")
    with pytest.raises(MintError) as caught:
        Journal(tmp_path / "j", MAGIC, {**HEADER, "model": "xyz"})
    with Journal(tmp_path / "j", MAGIC, HEADER) as journal:
        assert journal.records == RECORDS
    assert caught.value.__traceback__  # which holds what was refused until here


def test_a_header_and_a_record_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, MAGIC, HEADER) as journal:
        assert path.read_bytes() == MAGIC + frame(HEADER)
        journal.append(5)  # a payload of one byte
        assert path.read_bytes() == MAGIC + frame(HEADER) + frame(5)
    with Journal(path, MAGIC, HEADER) as journal:
        assert journal.records == [5]


@pytest.mark.parametrize("finish", [Path.unlink, lambda path: (path.unlink(), path.write_bytes(b"another"))])
def test_a_journal_that_another_process_has_just_finished_is_refused(
    finish: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "j", fcntl.flock

    def wait_for_lock(file: Any, operation: int) -> None:
        finish(path)  # the other process holds the lock until its file has the final name
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", wait_for_lock)
    with pytest.raises(MintError, match="another mint has just finished this file"):
        Journal(path, MAGIC, HEADER)


def test_a_sealed_file_may_be_without_records_and_no_header_is_its_own_seal(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    digest = write_sealed(path, KIND, HEADER, [])
    assert read_sealed(path, KIND) == Sealed(HEADER, [], digest)
    path.write_bytes(MAGIC + frame({**HEADER, "end": 0, "sha256": ""}))
    with pytest.raises(MintError, match="damaged: 0 frames after the header"):
        read_sealed(path, KIND)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"my thesis", "sealed: not a test file; needed: a file that `make test` wrote"),
        (MAGIC + frame({"schema": 3}), "sealed: a test file of schema 3, needed 1; test again"),
        (MAGIC + frame(HEADER) + frame(5), "sealed: damaged: 1 frames after the header are readable, the last is no"),
    ],
)
def test_a_file_that_is_not_a_finished_one_is_named_with_its_fault(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    path.write_bytes(content)
    with pytest.raises(MintError, match=fault):
        read_sealed(path, KIND)


def test_the_journal_of_a_finished_file_is_removed_and_no_other(tmp_path: Path) -> None:
    finished, journal = tmp_path / "a", partial_path(tmp_path / "a")
    remove_stray(finished, MAGIC)  # neither is there
    journal.write_bytes(MAGIC + frame(HEADER) + frame(5))
    remove_stray(finished, MAGIC)
    assert journal.exists()  # nothing is finished
    write_sealed(finished, KIND, {**HEADER, "model": "xyz"}, RECORDS)
    remove_stray(finished, MAGIC)
    assert journal.exists()  # it belongs to another file
    write_sealed(finished, KIND, HEADER, RECORDS)
    remove_stray(finished, MAGIC)
    assert not journal.exists()
    finished.write_bytes(MAGIC)
    journal.write_bytes(MAGIC)
    remove_stray(finished, MAGIC)
    assert journal.exists()  # two files without a header are not equal


def test_a_header_that_is_none_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for content in (b"", MAGIC, b"x" * 99, MAGIC + frame(5), MAGIC + frame(HEADER)[:-1]):
        path.write_bytes(content)
        assert read_header(path, MAGIC) is None
    assert read_header(tmp_path / "absent", MAGIC) is None
