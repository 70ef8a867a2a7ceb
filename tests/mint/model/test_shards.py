"""The weight files of a model: odd headers are errors with one sentence, files of other names are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mint.core.errors import MintError
from mint.formats.format import ITEMSIZE
from mint.model.checkpoint.shards import INDEX_NAME, read_shards
from mint.model.source import open_source

Make = Callable[..., Path]


def with_header(folder: Path, text: bytes) -> Path:
    """A folder with one shard that has this header and 64 bytes of data."""
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)
    return folder


def entry(**changes: Any) -> bytes:
    """A header of one tensor with this entry."""
    fields = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes
    return json.dumps({"x": fields}).encode()


ODD = {
    "nested": b"[" * 100_000,
    "nested entry": b'{"x": ' + b"[" * 100_000,
    "infinity": entry(shape=[float("inf"), 8]),
    "not a number": entry(shape=[float("nan"), 8]),
    "infinite offset": entry(data_offsets=[0, float("inf")]),
    "text": entry(shape="48"),
    "texts": entry(shape=["4", "4"]),
    "fractions": entry(shape=[4.0, 4.0]),
    "truth": entry(shape=[True, 16]),
    "long": b'{"x": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 64]}}',
    "longer than a disk": entry(shape=[10**4000, 4]),
    "many": entry(shape=[1 << 60] * 400),
    "negative": entry(shape=[-4, -4]),
    "offsets": entry(data_offsets=[0]),
    "list": b"[1]",
    "entry": b'{"x": 5}',
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_header_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"model\.safetensors: .*download it again") as caught:
        read_shards(with_header(tmp_path, ODD[case]))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"[]", b'{"weight_map": []}', b'{"weight_map": "x"}', b"\xff"])
def test_an_odd_index_is_refused(text: bytes, make_model: Make) -> None:
    folder = make_model("llama")
    (folder / INDEX_NAME).write_bytes(text)
    with pytest.raises(MintError, match="a safetensors index"):
        read_shards(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "a/../../b.safetensors", "a\0b"])
def test_an_index_leads_to_no_file_outside_of_the_folder(name: str, make_model: Make) -> None:
    folder = make_model("llama")
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(MintError, match="no file of the folder"):
        read_shards(folder)


def test_a_pointer_of_git_is_named(make_model: Make) -> None:
    folder = make_model("llama")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(MintError, match=r"a Git LFS pointer.*git lfs pull"):
        open_source(folder)


def spread(folder: Path, files: dict[str, Callable[[str], bool]], index: str = INDEX_NAME) -> None:
    """Deal the tensors of a model out to files of these names, each by its own test, and write the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed: dict[str, str] = {}
    for file, belongs in files.items():
        part = {name: tensors[name] for name in tensors if belongs(name) and name not in listed}
        (folder / file).parent.mkdir(exist_ok=True)
        save_file(part, folder / file)
        listed |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (("weights/model-1.safetensors", "weights/model-2.safetensors"), INDEX_NAME),
        (("pytorch_model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.safetensors"), INDEX_NAME),
        (("model-1.safetensors", "head.safetensors"), "pytorch_model.safetensors.index.json"),
    ],
)
def test_files_that_only_the_index_names_are_read(names: tuple[str, str], index: str, make_model: Make) -> None:
    plain, folder = make_model("llama", "plain", dtype="F32"), make_model("llama", "spread", dtype="F32")
    spread(folder, {names[0]: lambda name: "layers" in name, names[1]: lambda name: True}, index)
    expected = open_source(plain).arrays()
    actual = open_source(folder).arrays()
    assert actual.keys() == expected.keys()
    assert all((actual[name] == expected[name]).all() for name in expected)
    assert {shard.name for shard in read_shards(folder)} == set(names)


def test_tensors_of_another_file_that_the_model_lacks_are_dropped_and_listed(make_model: Make) -> None:
    folder = make_model("llama")
    tensors = load_file(folder / "model.safetensors")
    save_file({"mtp.layers.0.fc.weight": np.zeros((4, 4), np.float32)}, folder / "mtp.safetensors")
    listed = dict.fromkeys(tensors, "model.safetensors") | {"mtp.layers.0.fc.weight": "mtp.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": listed}))
    assert "mtp.layers.0.fc.weight" in open_source(folder).dropped


def test_names_of_newer_multimodal_exports_are_those_of_their_kin(make_model: Make) -> None:
    folder = make_model("gemma3_text")
    config = json.loads((folder / "config.json").read_text())
    tensors = {
        "model.language_model." + name.removeprefix("model."): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    tensors |= {"model.vision_tower.x.weight": np.zeros((4, 4), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    outer = {"model_type": "gemma3", "vocab_size": config["vocab_size"], "text_config": config, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    source = open_source(folder)
    assert all(unit.path.startswith("language_model.model.") for unit in source.units)
    assert source.dropped == ("model.vision_tower.x.weight",)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_of_the_format_opens_or_is_refused_by_name(dtype: str, make_model: Make) -> None:
    folder = make_model("llama")
    fields = {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * ITEMSIZE[dtype]]}
    header = json.dumps({"model.layers.0.self_attn.rotary_emb.inv_freq": fields}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4 * ITEMSIZE[dtype])
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if "layers.0.self_attn.rotary" not in name}
    save_file(kept, folder / "model.safetensors")
    (folder / "model-2.safetensors").write_bytes(data)
    try:
        open_source(folder)
    except MintError as error:
        assert dtype in str(error)
