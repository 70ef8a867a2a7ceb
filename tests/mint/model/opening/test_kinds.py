"""Other kinds of folders and files are named, with the command that helps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mint.core.errors import MintError
from mint.model.hub_cache import parse_id
from mint.model.locate import locate, model_name
from mint.model.source import open_source

Make = Callable[..., Path]
ADAPTER = json.dumps({"base_model_name_or_path": "Qwen/Qwen3-8B"})
KINDS = {
    "peft": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""}, "LoRA adapter of Qwen/Qwen3-8B.*peft"),
    "mlx": ({"adapter_config.json": "{}", "adapters.safetensors": ""}, "LoRA adapter of mlx_lm.*mlx_lm.fuse"),
    "pickle": ({"config.json": "{}", "pytorch_model.bin": ""}, "pickle files.*never opened; .*from_pretrained"),
    "diffusers": ({"model_index.json": "{}"}, "a pipeline of diffusers; needed: a language model"),
    "onnx": ({"config.json": "{}", "model.onnx": ""}, "an ONNX model"),
    "mistral": ({"params.json": "{}", "consolidated.safetensors": ""}, "Mistral's own layout"),
    "flax": ({"config.json": "{}", "flax_model.msgpack": ""}, "TensorFlow or Flax"),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_folder_of_another_kind_is_told_what_it_is(case: str, tmp_path: Path) -> None:
    files, message = KINDS[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(MintError, match=rf"no model\*\.safetensors found.*{message}"):
        open_source(tmp_path)


def test_a_file_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(MintError, match="an ONNX model"):
        open_source(tmp_path / "model.onnx")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MintError, match="it is a file; needed: the folder"):
        open_source(tmp_path / "model.safetensors")


def test_a_config_that_is_a_pointer_of_git_is_named(make_model: Make) -> None:
    folder = make_model("llama")
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(MintError, match=r"a Git LFS pointer.*git lfs pull"):
        open_source(folder)


def test_a_model_that_mlx_quantized_is_told_how(make_model: Make) -> None:
    folder = make_model("llama")
    config = json.loads((folder / "config.json").read_text())
    quantization = {"bits": 4, "group_size": 64}
    (folder / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
    with pytest.raises(MintError, match=r"quantized by MLX \(affine, 4 bits, groups of 64\); needed: the original"):
        open_source(folder)


@pytest.mark.parametrize(
    ("address", "id"),
    [
        ("https://huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/Qwen/Qwen3-8B/", "Qwen/Qwen3-8B"),
        ("https://www.huggingface.co/Qwen/Qwen3-8B?library=mlx", "Qwen/Qwen3-8B"),
        ("https://hf.co/Qwen/Qwen3-8B#usage", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/v1.0", "Qwen/Qwen3-8B@v1.0"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/refs/pr/7", "Qwen/Qwen3-8B@refs/pr/7"),
        ("https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json", "Qwen/Qwen3-8B"),
    ],
)
def test_the_address_of_a_page_is_its_id(address: str, id: str) -> None:
    assert str(parse_id(address)) == id


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/Qwen",
        "https://huggingface.co.evil/a/b",
        "ftp://a/b",
    ],
)
def test_other_addresses_are_no_ids(address: str) -> None:
    assert parse_id(address) is None


def test_a_folder_of_the_cache_is_its_snapshot(make_model: Make, tmp_path: Path) -> None:
    repository = tmp_path / "models--Owner--tiny"
    with pytest.raises(MintError, match=r"snapshots: none; needed: one of them, or Owner/tiny"):
        repository.mkdir()
        locate(repository)
    first = repository / "snapshots" / "aaa"
    first.parent.mkdir()
    make_model("llama", "models--Owner--tiny/snapshots/aaa")
    assert open_source(repository).folder == first
    assert model_name(repository) == "tiny"
    (first.parent / "bbb").mkdir()
    with pytest.raises(MintError, match="snapshots: aaa, bbb; needed"):
        locate(repository)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert locate(repository) == first
