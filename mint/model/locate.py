"""A model's name to its folder: a folder's own path, GGUF files, or an id of the Hugging Face hub.

A path is every `Path`, every name that exists, and every name that is no id (`./a/b`, `/a/b`, `a/b/c`). An
`owner/name` is looked for in the hub's cache. Of those that are not there, one whose `owner` is a local folder is a
path, and any other is downloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint.core.cache import recall
from mint.core.errors import MintError
from mint.core.progress import OnProgress, ignore
from mint.model.gguf.files import SUFFIX, gguf_files, gguf_name
from mint.model.hub_cache import Check, HubId, NotOnHubError, cached, parse_id


def locate(model: str | Path, on_progress: OnProgress = ignore, *, check: Check = lambda folder: None) -> Path:
    """The folder that `model` means: a model of the hub is downloaded and a GGUF is converted unless a cache has it.

    `check` gets the folder before its large files are downloaded, and may raise. Raises `MintError` for a model that
    is not available; a path is returned as it is.
    """
    id = hub_id(model)
    if id is None:
        path = _snapshot_in(Path(model))
        files = gguf_files(path)
        if not files:
            return path
        from mint.model.gguf.convert import converted  # imports tokenizers

        return converted(files, on_progress)
    if folder := cached(id):
        return folder
    from mint.model.hub_download import fetch  # imports what asks a network

    with no_folder(model):
        return fetch(id, on_progress, check=check)


@contextmanager
def no_folder(model: str | Path) -> Iterator[None]:
    """Add to an error of the hub that there is no folder of this name, which may be what the user meant."""
    try:
        yield
    except NotOnHubError as error:
        raise NotOnHubError(f"{model}: no such folder, and as a model of the hub: {error}") from error


def _snapshot_in(folder: Path) -> Path:
    """The one snapshot in a folder of the hub's cache (models--OWNER--NAME); any other path as it is."""
    if not folder.name.startswith("models--") or (folder / "config.json").exists():
        return folder
    id = "/".join(folder.name.split("--")[1:])
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    revision = recall(main, bytes.decode) or ""
    current = [path for path in snapshots if path.name == revision.strip()]
    if len(current or snapshots) == 1:
        return (current or snapshots)[0]
    names = ", ".join(path.name for path in snapshots[:4]) or "none"
    raise MintError(f"{folder}: a folder of the hub's cache with the snapshots: {names}; needed: one of them, or {id}")


def hub_id(model: str | Path) -> HubId | None:
    """The id that `model` is; None for a path. Raises `MintError` for one that cannot be looked at."""
    if model == "":  # `Path` would make it the current folder
        raise MintError("the name of the model is empty; needed: the path of a folder, or an id of the hub")
    try:
        if isinstance(model, Path) or Path(model).exists():
            return None
        id = parse_id(model)
        return None if id and is_in_folder(model) and not cached(id) else id
    except OSError as error:
        raise MintError(f"{model}: {error.strerror}; needed: the path of a folder, or an id of the hub") from error


def is_in_folder(name: str | Path) -> bool:
    """True for a name like `owner/name` whose first part is a local folder; an address of the hub has none."""
    parts = Path(name).parts
    return len(parts) > 1 and Path(parts[0]).is_dir()


def model_name(model: str | Path) -> str:
    """The name of a model, without its folder or owner."""
    id, path = hub_id(model), Path(model).resolve()
    if id or path.suffix.lower() == SUFFIX:
        return id.name if id else gguf_name(path)
    return path.name.rpartition("--")[2] if path.name.startswith("models--") else path.name
