"""A folder that looks like a whole model of which this machine holds only a part.

Files that it holds are links. Every other shard is a sparse file of its full size with the true header and the ranges
that were filled in; all else in it reads as zeros, so only filled ranges may be read. MLX builds the whole lazy module
tree over such a folder and reads only the tensors that feed a unit.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mint.core.cache import cache_folder
from mint.core.files import TEMPLATES, write_all
from mint.model.checkpoint.shards import read_header, shard_names


@dataclass(frozen=True, slots=True)
class Outline:
    """A shard without its data: its size and its header as it lies in the file."""

    nbytes: int
    header: bytes


Range = tuple[int, int]  # first byte and number of bytes, from the start of the file


def read_outline(path: Path) -> Outline:
    """The size and header of a safetensors file that was checked before."""
    header, nbytes = read_header(path)
    return Outline(nbytes, header)


def view_folder(identity: str, folder: Path | None) -> Path:
    """The folder for a view of a model over the files of `folder`, under its name: two nodes on a machine have two."""
    digest = hashlib.sha256(f"{identity}\0{folder}".encode()).hexdigest()[:32]
    return cache_folder() / "views" / digest / (folder.absolute().name if folder else "model")


def make_view(view: Path, local: Path | None, config: bytes, outlines: Mapping[str, Outline]) -> Path:
    """Make the folder `view`: every file of `local` linked but its config, `config`, a sparse file per outline."""
    view.mkdir(parents=True, exist_ok=True)
    for old in view.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    if local:
        beside = {path.name for path in local.iterdir() if path.is_file() and path.name != "config.json"}
        beside |= {path.relative_to(local).as_posix() for path in local.glob(f"{TEMPLATES}/*.jinja")}
        for name in sorted(beside | set(shard_names(local))):
            (view / name).parent.mkdir(parents=True, exist_ok=True)
            (view / name).symlink_to((local / name).resolve())
    (view / "config.json").write_bytes(config)
    for name, outline in outlines.items():
        make_outline(view, name, outline)
    return view


def make_outline(view: Path, name: str, outline: Outline) -> None:
    """Make a sparse file with a shard's true header in `view`; it replaces one that was filled in."""
    path = view / name
    assert not path.is_symlink(), f"{name} is held, not borrowed"
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(len(outline.header).to_bytes(8, "little") + outline.header)
        file.truncate(outline.nbytes)


def read_ranges(path: Path, ranges: Iterable[Range]) -> list[bytes]:
    """These ranges of a file."""
    with path.open("rb") as file:
        return [os.pread(file.fileno(), nbytes, start) for start, nbytes in ranges]


def fill_in(path: Path, ranges: Sequence[Range], pieces: Sequence[bytes]) -> None:
    """Write ranges into a sparse file."""
    assert not path.is_symlink(), f"{path.name} is held, not borrowed"
    with path.open("r+b") as file:
        for (start, nbytes), piece in zip(ranges, pieces, strict=True):
            assert len(piece) == nbytes
            write_all(file.fileno(), piece, start)
