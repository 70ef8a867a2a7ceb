"""The record of a verification beside the manifest: it holds as long as the manifest and the sizes of files do."""

import json
import os
from pathlib import Path

from mint.core.cache import recall
from mint.core.files import write_whole
from mint.model.checkpoint.beside import CARD_NAME
from mint.model.checkpoint.manifest import MANIFEST_NAME, file_digest, read_manifest

VERIFIED_NAME = "mint-verified.json"
KIND = "mint verification"


def record_verification(folder: Path, passed: bool) -> None:
    """Write that the model in `folder` passed its verification, or remove an earlier record."""
    if not os.access(folder, os.W_OK):
        return
    if not passed:
        (folder / VERIFIED_NAME).unlink(missing_ok=True)
        return
    record = {"kind": KIND, "manifest": file_digest(folder / MANIFEST_NAME).sha256}
    write_whole(folder / VERIFIED_NAME, (json.dumps(record, indent=1) + "\n").encode())


def is_verified(folder: Path) -> bool:
    """True if the model in `folder` was verified, and its manifest and the sizes of its files are still the same."""
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return False
    if recall(folder / VERIFIED_NAME, json.loads) != {"kind": KIND, "manifest": file_digest(manifest).sha256}:
        return False
    files = {name: file for name, file in read_manifest(folder).files.items() if name != CARD_NAME}
    return all((folder / n).is_file() and (folder / n).stat().st_size == file.nbytes for n, file in files.items())
