"""Seeds and calls of parsers that read no file of a model: GGUF settings, the user's settings, answers of a service."""

import json
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
from httpx_sse import ServerSentEvent

from mint.cli.main import app
from mint.cli.settings import option_defaults, settings_file
from mint.client.client import ServedJob, event_of, job_of
from mint.client.http import record_of, records_of
from mint.model.gguf.architectures import config_in
from mint.model.gguf.metadata import GgufModel

GGUF_VALUES = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 1,
    "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.context_length": 128, "llama.rope.freq_base": 1e4,
    "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "llama.expert_count": 4,
    "llama.expert_used_count": 2, "llama.rope.dimension_count": 16, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
_TENSORS = {"token_embd.weight": (256, 64), "blk.0.attn_q.weight": (64, 64), "output_norm.weight": (64,)}


def gguf_file(path: Path) -> bytes:
    """The content of a tiny GGUF file, written to `path`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.embedding_length", 64)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
    for name, shape in _TENSORS.items():
        writer.add_tensor(name, np.zeros(shape, np.float32)[..., :1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_values(text: bytes) -> None:
    """Make a config of the settings of a GGUF file."""
    try:
        values = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return  # a GGUF file has no JSON
    tensors: Any = {name: SimpleNamespace(shape=shape[::-1]) for name, shape in _TENSORS.items()}
    config_in(GgufModel(Path("m.gguf"), values, tensors))


def read_settings(folder: Path, text: bytes) -> None:
    """Read the settings of a user whose file in `folder` has this content."""
    with patch.dict(os.environ, {"MINT_CONFIG": str(folder)}):
        settings_file().write_bytes(text)
        option_defaults(app)


def empty_job() -> dict[str, Any]:
    """The record of a job as a service sends it, with empty fields."""
    empty: dict[str, Any] = {
        "bool": False,
        "int": 0,
        "float": 0.0,
        "float | None": None,
        "str": "",
        "tuple[str, ...]": [],
    }
    return {field.name: empty.get(str(field.type), {}) for field in fields(ServedJob)}


def answer() -> bytes:
    """An answer of a service with a job."""
    return json.dumps({"jobs": [empty_job()], "models": [{"name": "m"}], "digest": "0"}).encode()


def read_answer(text: bytes) -> None:
    """Read all records of an answer."""
    whole = record_of(text)
    for record in records_of(whole, "jobs"):
        job_of(record)
    records_of(whole, "models")
    str(whole["digest"])


def read_event(text: bytes) -> None:
    """Read an event whose texts are those of a JSON object."""
    try:
        parts = json.loads(text)
        event = ServerSentEvent(event=str(parts["event"]), data=str(parts["data"]), id=str(parts["id"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # a stream has texts
    event_of(event)
