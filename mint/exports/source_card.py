"""Reads the metadata of a source's card that its quantized model keeps."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mint.core.cache import recall
from mint.model.checkpoint.beside import CARD_NAME
from mint.model.hub_cache import origin

_BLOCK = re.compile(r"\s*---\n(?P<metadata>.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)  # as huggingface_hub reads it
_TEXTS = ("license", "license_name", "license_link")
_LISTS = ("language", "tags", "base_model")


@dataclass(frozen=True, slots=True)
class SourceCard:
    """The name of a source, and the metadata of its card that holds for every form of the model."""

    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The id of the source on the hub; empty where it is unknown."""
        return str(self.metadata["base_model"][0]) if "base_model_relation" in self.metadata else ""

    @property
    def tags(self) -> list[str]:
        return list(self.metadata.get("tags", ()))


def read_source_card(folder: Path) -> SourceCard:
    """The card of the model in `folder`; a missing or damaged one says nothing.

    The base model is the source itself where its id on the hub is known, and else what its card names.
    """
    written = _metadata(folder / CARD_NAME)
    metadata: dict[str, Any] = {name: value for name in _TEXTS if isinstance(value := written.get(name), str) and value}
    metadata |= {name: values for name in _LISTS if (values := _texts(written.get(name)))}
    id = origin(folder)
    if id is None:
        return SourceCard(folder.absolute().name, metadata)
    return SourceCard(id.name, {**metadata, "base_model": [id.repository], "base_model_relation": "quantized"})


def _metadata(card: Path) -> dict[str, Any]:
    import yaml

    text = recall(card, lambda text: text.decode("utf-8-sig").replace("\r\n", "\n")) or ""
    match = _BLOCK.match(text)
    try:
        metadata = yaml.safe_load(match["metadata"]) if match else None
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _texts(value: Any) -> list[str]:
    """The texts of a value that may be one, or a list of them."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]
