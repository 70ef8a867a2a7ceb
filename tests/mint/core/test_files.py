"""Files that outlive a kill."""

import os
import subprocess
import sys
from pathlib import Path

from mint.core.files import holds, write_whole


def _killed_while_writing(path: Path) -> None:
    """Another process writes a file and is killed before it gets its name."""
    code = "import os, sys; from pathlib import Path; import mint.core.files as files; "
    code += "os.fsync = lambda _: os.kill(os.getpid(), 9); files.write_whole(Path(sys.argv[1]), b'half')"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "file[1].json"
    _killed_while_writing(path)
    _killed_while_writing(path)
    assert len(list(tmp_path.iterdir())) == 1
    write_whole(path, b"whole")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert holds(path, b"whole")
    assert not holds(path, b"other")


def test_the_temporary_file_of_a_running_writer_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    other = tmp_path / f"file.{os.uname().nodename}-{os.getppid()}.tmp"
    other.touch()
    write_whole(path, b"whole")
    assert other.exists()


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
