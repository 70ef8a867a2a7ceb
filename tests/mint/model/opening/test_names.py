"""A checkpoint under the names of another program opens as the same model."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.core.errors import MintError
from mint.model.source import open_source
from tests.mint.model.storages.twins import check_same
from tests.worlds.encodings import (
    Encoding,
    Tensors,
    edit_config,
    fp8,
    int8,
    read_tensors,
    write_encoded,
    write_tensors,
)
from tools.models.families import write_family

Make = Callable[..., Path]


def held(holder: str) -> Callable[[str], str]:
    return lambda name: f"{holder}{name}"


def bare(name: str) -> str:
    return name.removeprefix("model.")


def check_same_weights(folder: Path, tensors: Tensors) -> None:
    """The model opens with the same parameters from these tensors."""
    expected = open_source(folder).arrays()
    mx.eval(expected)
    write_tensors(folder / "model.safetensors", tensors)
    arrays = open_source(folder).arrays()
    assert arrays.keys() == expected.keys()
    assert all(mx.array_equal(array, expected[name]) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("gpt2", held("transformer.")),
        ("llama", held("_orig_mod.")),
        ("llama", held("module.")),
        ("qwen3_moe", held("base_model.model.")),
        ("llama", held("language_model.")),
        ("llama", lambda name: name.replace("model.", "model.language_model.", 1)),
        ("qwen3", bare),
        ("gemma2", bare),
        ("deepseek_v3", bare),
    ],
)
def test_names_of_other_programs_are_understood(family: str, rename: Callable[[str], str], make_model: Make) -> None:
    folder = make_model(family)
    tensors = read_tensors(folder / "model.safetensors")
    check_same_weights(folder, {rename(name): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    "name", ["model.rotary_emb.inv_freq", "model.embed_tokens.position_ids", "model.layers.0.self_attn._extra_state"]
)
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_tensors_that_follow_from_the_config_are_left_out(family: str, name: str, make_model: Make) -> None:
    folder = make_model(family)
    tensors = read_tensors(folder / "model.safetensors")
    check_same_weights(folder, tensors | {name: ("F32", np.arange(16, dtype=np.float32))})


def test_layers_that_predict_further_tokens_are_left_out_if_the_config_says_so(make_model: Make) -> None:
    folder = make_model("deepseek_v3")
    tensors = {name.replace(".61.", ".3."): tensor for name, tensor in
               read_tensors(folder / "model.safetensors").items()}  # fmt: skip
    check_same_weights(folder, tensors)
    edit_config(folder, {"num_nextn_predict_layers": 0})
    with pytest.raises(MintError, match="do not fit"):
        open_source(folder)


@pytest.mark.parametrize("encoding", [None, fp8(), int8()])
def test_experts_that_lie_apart_are_stacked_for_a_class_of_stacks(encoding: Encoding | None, tmp_path: Path) -> None:
    folder = write_family("qwen3_5_moe", tmp_path / "model")
    stacks = read_tensors(folder / "model.safetensors")
    apart = {name: tensor for name, tensor in stacks.items() if "switch_mlp" not in name}
    for name, (dtype, array) in stacks.items():
        if "switch_mlp" in name:
            apart |= {name.replace("switch_mlp", f"experts.{e}"): (dtype, part) for e, part in enumerate(array)}
    if encoding is None:
        check_same_weights(folder, apart)
        return
    write_tensors(folder / "model.safetensors", apart)
    twin = write_encoded(folder, r"experts\.\d+\.\w+\.weight$", encoding)
    source = check_same(folder, twin)
    assert any(unit.role.startswith("expert") and len(unit.sources) == 8 for unit in source.units)


def test_weights_of_adapters_beside_those_of_the_model_are_told(make_model: Make) -> None:
    folder = make_model("llama")
    tensors = read_tensors(folder / "model.safetensors")
    adapter = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": tensors["model.norm.weight"]}
    write_tensors(folder / "model.safetensors", tensors | adapter)
    with pytest.raises(MintError, match="it has LoRA weights beside the model's; merge them first"):
        open_source(folder)


def test_a_checkpoint_without_the_head_of_its_config_is_told_of_the_tie(make_model: Make) -> None:
    folder = make_model("llama")
    tensors = read_tensors(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(
        MintError, match=r"there is no lm_head\.weight; if the head is the embedding, set tie_word_embeddings to true"
    ):
        open_source(folder)


def test_the_text_of_gemma_3n_alone_opens(tmp_path: Path) -> None:
    folder = write_family("gemma3n", tmp_path / "model")
    units = open_source(folder).units
    tensors = read_tensors(folder / "model.safetensors")
    alone = {name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", alone)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **text, "model_type": "gemma3n_text"}))
    source = open_source(folder)
    assert [unit.path for unit in source.units] == [unit.path for unit in units]
