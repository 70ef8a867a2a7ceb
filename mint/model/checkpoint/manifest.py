"""The record of a written model: every file with its size and digest, every unit with the digest of its bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mint.core.errors import MintError
from mint.core.files import naming, read_json
from mint.model.checkpoint.beside import CARD_NAME

MANIFEST_NAME = "mint.json"
PLAN_NAME = "mint-plan.json"
KIND = "mint manifest"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """Size and SHA-256 of a file of the output folder."""

    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of an assembled model; `units` maps each path to the SHA-256 of its tensors' bytes."""

    plan: str
    model: str
    device: str
    versions: Mapping[str, str]
    budget_bytes: int
    weight_bytes: int
    files: Mapping[str, WrittenFile]
    units: Mapping[str, str]
    dropped_towers: tuple[str, ...] = ()  # vision or audio: the model is text only
    closeness: Mapping[str, Any] | None = None  # to the original, as `quality.closeness` measured it
    uniform: Mapping[str, Any] | None = None  # the bytes and the closeness of uniform 4-bit, on the same text

    def __repr__(self) -> str:
        return f"<Manifest of {len(self.units)} units, {self.weight_bytes:,} bytes of weights, {len(self.files)} files>"


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `mint.json` into `folder`; the same manifest always gives the same bytes."""
    record = {"kind": KIND, "schema": SCHEMA, **asdict(manifest)}
    (folder / MANIFEST_NAME).write_text(json.dumps(record, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the model in `folder`; `MintError` when there is none or it is damaged."""
    path = folder / MANIFEST_NAME
    if not folder.exists():
        raise MintError(f"{folder}: no such folder; needed: a folder that mint wrote")
    if not path.is_file():
        raise MintError(f"{folder}: no {MANIFEST_NAME} found; needed: a folder that mint wrote")
    try:
        record: dict[str, Any] = read_json(path, "assemble the model again")
        if record.pop("kind") != KIND or record.pop("schema") != SCHEMA:
            raise ValueError(f"not a manifest of schema {SCHEMA}")
        record["files"] = {_inside(name): WrittenFile(**fields) for name, fields in record["files"].items()}
        record["dropped_towers"] = tuple(record.get("dropped_towers", ()))
        return Manifest(**record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MintError(f"{path}: not a manifest that mint can read ({error!r}); assemble the model again") from error


def _inside(name: str) -> str:
    """The name of a file, if it lies in the folder; another one would be read, and its digest shown."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is no file of this folder")
    return name


def difference(folder: Path, manifest: Manifest) -> str:
    """The first file that is not as the manifest says, in words; empty if all are. People edit the card."""
    for name, expected in manifest.files.items():
        path = folder / name
        if name == CARD_NAME:
            continue
        if not path.is_file():
            return f"{name} is missing"
        digest = file_digest(path)
        if digest.nbytes != expected.nbytes:
            return f"{name} has {digest.nbytes} bytes, the manifest says {expected.nbytes}"
        if digest != expected:
            return f"{name} has SHA-256 {digest.sha256[:16]}, the manifest says {expected.sha256[:16]}"
    return ""


def file_digest(path: Path) -> WrittenFile:
    """Size and SHA-256 of the file at `path`, read in pieces."""
    with naming(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(file.tell(), sha256)
