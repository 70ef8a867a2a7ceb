"""Files are whole or not there, and killed writers leave nothing for long."""

import os
from pathlib import Path

from mint.core.files import write_whole


def test_what_a_killed_writer_left_is_removed_by_the_next_write_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan[1].json"
    killed, other, writing = (
        tmp_path / name for name in ("plan[1].json.7.tmp", "plan1.json.7.tmp", "plan[1].json.8.tmp")
    )
    for leftover in (killed, other, writing):
        leftover.write_bytes(b"half")
    for leftover in (killed, other):
        os.utime(leftover, (0, 0))
    write_whole(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert sorted(tmp_path.iterdir()) == sorted((path, other, writing))  # of another file, and of a writer at work
