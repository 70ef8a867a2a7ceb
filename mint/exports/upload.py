"""Uploads a written and verified model to the Hugging Face hub, with huggingface_hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.model.checkpoint.manifest import difference, read_manifest
from mint.model.checkpoint.verified import VERIFIED_NAME, is_verified
from mint.model.hub_cache import HubId, parse_id

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LOCAL = ["*.journal", "*.tmp", VERIFIED_NAME]  # files that are of this machine


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A model on the hub: its id, the address of its page, and the commit that holds it."""

    id: str
    url: str
    commit: str


def upload(folder: Path | str, repository: str, *, private: bool = False, on_progress: OnProgress = ignore) -> Uploaded:
    """Upload the model in `folder` to `repository` (owner/name), which is made if need be; also in several commits.

    Files that the hub has are not sent again, so after an interruption the same call resumes. Raises `MintError` for
    a model that is not verified or has changed since, and for what the hub refuses.
    """
    import httpx2
    from huggingface_hub import HfApi, errors

    folder, id = Path(folder), check_upload(repository)
    _require_verified(folder)
    on_progress(Progress("upload", 0, 0, repository))
    api = HfApi()
    try:
        page = api.create_repo(id.repository, private=private or None, exist_ok=True)
        with _without_bars():
            commit = api.upload_folder(
                repo_id=id.repository,
                folder_path=folder,
                revision=None if id.revision == "main" else id.revision,
                ignore_patterns=list(_LOCAL),
                commit_message="Upload a model quantized by MINT",
            )
    except errors.HfHubHTTPError as error:
        raise _explained(id, error) from error
    except (httpx2.TransportError, RuntimeError) as error:  # huggingface_hub wraps what breaks a large file
        raise MintError(f"{id}: the upload broke off ({error}); run the same command again to resume") from error
    except ValueError as error:  # metadata of the card
        raise MintError(f"{folder}: the hub refuses it ({error}); fix README.md") from error
    return Uploaded(id.repository, str(page), commit.oid)


def check_upload(repository: str) -> HubId:
    """The id of a repository to write to; `MintError` for what cannot be one, and without a token or a network."""
    from huggingface_hub import get_token, is_offline_mode

    id = parse_id(repository)
    if id is None:
        raise MintError(f"{repository!r} is no repository of the hub; needed: OWNER/NAME")
    if is_offline_mode():
        raise MintError("HF_HUB_OFFLINE is set; needed: HF_HUB_OFFLINE=0 to upload")
    if not get_token():
        raise MintError(
            f"{id}: no token to upload with; needed: hf auth login, or HF_TOKEN, with a token that may write"
        )
    return id


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the bars of huggingface_hub from the terminal, where mint shows its own progress."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _require_verified(folder: Path) -> None:
    fault = difference(folder, read_manifest(folder))
    if fault or not is_verified(folder):
        raise MintError(f"{folder} is not verified{f' ({fault})' if fault else ''}; needed: mint verify {folder}")


def _explained(id: HubId, error: "HfHubHTTPError") -> MintError:
    """The error of the hub, with its remedy."""
    status = error.response.status_code
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if status in (401, 403, 404):
        remedy = "needed: a token that may write there (hf auth login)"
        return MintError(f"{id}: the hub refuses the upload ({status}: {reason}); {remedy}")
    return MintError(f"{id}: the hub answers {status} ({reason}); run the same command again later to resume")
