"""Models of the Hugging Face hub: their ids, and their snapshots in its cache on this machine.

An id is `owner/name`, or `owner/name@revision`; the address of a model's page means the same. It never leads out of
the cache: every part of it begins with a letter or a digit. huggingface_hub is imported when the cache is looked into.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.model.checkpoint.beside import BESIDE
from mint.model.checkpoint.shards import PATTERN, read_index

_NEEDED = (PATTERN, *BESIDE)  # a snapshot without one of these is not whole
_REPOSITORY = "models--"  # begins the folder of a model in the cache
_NESTED = "*/*"  # files in folders are not needed, unless the index names them
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"  # huggingface_hub's rule, but for a `_` in front
_URL = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/@]+/[^/@?#]+)"
    r"(?:/(?:tree|commit|blob|resolve)/(?P<revision>refs/pr/\d+|[^/?#]+)[^?#]*)?/?(?:[?#].*)?"
)
_ID = re.compile(rf"(?P<repository>(?![^@]*--){_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?", re.ASCII)


Check = Callable[[Path], object]  # of a folder, before its weights come; may raise


class NotOnHubError(MintError):
    """The hub does not know a model, or does not answer: its name may mean something else."""


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the hub, `repository` being `owner/name`; the revision is a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def parse_id(text: str) -> HubId | None:
    """The id that a text is, or that its page on huggingface.co has; None for anything else.

    A path has a `.` or a slash in front, or more than one slash.
    """
    if url := _URL.fullmatch(text):
        text = url["repository"] + (f"@{url['revision']}" if url["revision"] else "")
    match = _ID.fullmatch(text)
    return HubId(match["repository"], match["revision"] or "main") if match and ".." not in text else None


def snapshot(id: HubId, names: Sequence[str] = (), **options: Any) -> Path:
    """The folder that huggingface_hub makes of the files of these names, by default of those that mint needs.

    Any exception of huggingface_hub comes through.
    """
    from huggingface_hub import snapshot_download

    options |= {"allow_patterns": list(names or _NEEDED), "ignore_patterns": None if names else _NESTED}
    return Path(snapshot_download(id.repository, revision=id.revision, **options))


def cached(id: HubId) -> Path | None:
    """The snapshot of a model in the hub's cache, if it is whole there; asks no network."""
    try:
        folder = snapshot(id, local_files_only=True)
    except (OSError, ValueError):  # not there, or files of it are missing; not what the hub calls an id
        return None
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """True if a snapshot has its config and its shards, those of its index included.

    A cache that an older huggingface_hub filled records no completeness.
    """
    shards = set(read_index(folder).values())
    weights = all((folder / name).exists() for name in shards) if shards else any(folder.glob(PATTERN))
    return weights and (folder / "config.json").exists()


def origin(folder: Path) -> HubId | None:
    """The id of the snapshot in `folder`; None for a folder that is none."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith(_REPOSITORY):
        return None
    return HubId("/".join(repository.removeprefix(_REPOSITORY).split("--", 1)), folder.name)


def snapshot_path(id: HubId, commit: str, cache: Path) -> Path:
    """The folder of a snapshot in a cache; `origin` gives the id and the commit back."""
    return cache / f"{_REPOSITORY}{id.repository.replace('/', '--')}" / "snapshots" / commit


def blob_folders(snapshot: Path) -> tuple[Path, ...]:
    """The folders that hold the files of a snapshot: its repository's blobs, and those that repositories share.

    Empty for any other folder. Since version 2 huggingface_hub keeps what came by Xet once for all repositories.
    """
    repository = snapshot.parent.parent
    return (repository / "blobs", repository.parent / "blobs") if origin(snapshot) else ()
