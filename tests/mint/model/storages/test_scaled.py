"""FP8 and int8 checkpoints open as the plain checkpoint of their decoded values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mint.core.errors import MintError
from mint.model.source import open_source
from tests.mint.model.storages.twins import check_reference, check_same
from tests.worlds.encodings import (
    Array,
    Encoding,
    Tensors,
    edit_config,
    fp8,
    int8,
    read_tensors,
    torchao,
    write_encoded,
    write_tensors,
)

Make = Callable[..., Path]
MATRICES = r"(proj|w[123])\.weight$"
FP8_BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
TORCHAO = {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "of the test"}}}}
QUARK = {"quantization_config": {"quant_method": "quark", "export": {"pack_method": "reorder"}}}
MXFP8 = {"quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp8-quantized"}}
FP8_32 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}}


@pytest.mark.parametrize(
    ("family", "encoding", "config"),
    [
        ("llama", fp8(), FP8_BLOCKS),
        ("llama", fp8(kind="scalar"), {}),
        ("llama", fp8(kind="row", scale="_scale", scale_dtype="BF16"), {}),
        ("llama", fp8(kind="row", scale=".scale"), {}),
        ("llama", fp8("F8_E5M2", kind="block"), FP8_BLOCKS),
        ("llama", fp8(kind="block32", scale=".scale", scale_dtype="F8_E8M0"), FP8_32),
        ("llama", fp8(kind="block", scale_dtype="U8"), FP8_BLOCKS),
        ("qwen3_moe", fp8(), FP8_BLOCKS),
        ("deepseek_v3", fp8(), FP8_BLOCKS),
        ("deepseek_v3", fp8(scale_dtype="U8"), FP8_BLOCKS),
        ("granitemoe", fp8(kind="expert", scale="_scale"), {}),
        ("granitemoe", fp8(kind="stack", scale="_scale"), {}),
        ("granitemoe", fp8(kind="row", scale="_scale"), {}),
        ("granitemoe", fp8(kind="column", scale="_scale"), {}),
        ("granitemoe", fp8(), FP8_BLOCKS),
        ("qwen2", fp8(kind="column", scale="_scale"), {}),
        ("gemma3_text", fp8(kind="group32", scale="_scale", scale_dtype="U8"), MXFP8),
        ("gemma3_text", fp8("F8_E5M2", kind="group32", scale="_scale", scale_dtype="U8"), MXFP8),
        ("llama", fp8(kind="group64", scale="_scale", scale_dtype="BF16"), {}),
        ("llama", int8("group64", zeros=True), {}),
        ("mixtral", int8("group32"), {}),
        ("qwen2", int8("scalar", zeros=True), {}),
        ("granitemoe", int8("row", zeros=True), {}),
        ("llama", torchao(int8("group64", zeros=True)), TORCHAO),
        ("llama", int8(), {}),
        ("qwen3_moe", int8("row", zeros=True), {}),
        ("llama", torchao(fp8(kind="row", scale="_scale")), TORCHAO),
        ("llama", torchao(int8()), TORCHAO),
        ("llama", torchao(int8("block32", zeros=True)), TORCHAO),
        ("llama", fp8(kind="row", scale="_scale"), QUARK),
        ("llama", int8(zeros=True), QUARK),
    ],
)
def test_a_scaled_checkpoint_opens_as_its_decoded_values(
    family: str, encoding: Encoding, config: dict[str, Any], make_model: Make
) -> None:
    folder = make_model(family)
    pattern = r"linear\.weight$" if family == "granitemoe" else MATRICES
    twin = write_encoded(folder, pattern, encoding, config)
    check_same(folder, twin)
    check_reference(folder, twin)


def test_the_scale_of_a_ministral_is_applied_to_values_and_not_to_bytes(make_model: Make) -> None:
    folder = make_model("llama", tied=False)
    rope = {"rope_theta": 10000.0, "rope_type": "default", "llama_4_scaling_beta": 0.1}
    rope |= {"original_max_position_embeddings": 512}
    edit_config(folder, {"model_type": "ministral3", "rope_parameters": rope, "head_dim": 32})
    twin = write_encoded(folder, MATRICES, fp8(kind="scalar"), {"quantization_config": {"quant_method": "fp8"}})
    tensors = read_tensors(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.activation_scale"] = tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    write_tensors(folder / "model.safetensors", tensors)
    check_same(folder, twin)


@pytest.mark.parametrize("encoding", [fp8(kind="row", scale="_scale"), int8()])
def test_a_weight_whose_inputs_are_scaled_too_is_refused(encoding: Encoding, make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, torchao(encoding), TORCHAO)
    tensors = read_tensors(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_qdata")]:
        columns = np.ones(tensors[name][1].shape[1], np.float32)
        tensors[f"{name.removesuffix('_qdata')}_act_pre_scale"] = "F32", columns
    write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(MintError, match=r"_weight_qdata.* is encoded in a way|no scale that fits"):
        open_source(folder)


def test_the_packed_integers_of_torchao_are_refused(make_model: Make) -> None:
    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        (rows, columns), stem = shape, f"{name.removesuffix('.weight')}._weight"
        codes = rng.integers(-128, 128, (rows, columns // 2), dtype=np.int8)
        scales = rng.uniform(0.01, 0.02, (columns // 32, rows))
        parts: Tensors = {f"{stem}_qdata": ("I8", codes), f"{stem}_scale": ("BF16", scales)}
        return parts | {f"{stem}_zero_point": ("BF16", scales)}, np.zeros(shape, np.float32)

    folder = make_model("llama")
    write_encoded(folder, MATRICES, encode, TORCHAO)
    with pytest.raises(MintError, match=r"do not fit mlx_lm's llama model|is encoded in a way"):
        open_source(folder)


def test_a_plain_cast_to_fp8_is_taken_as_it_is_stored(make_model: Make) -> None:
    folder = make_model("llama")
    twin = write_encoded(folder, MATRICES, fp8(kind="scalar"))
    shard = folder / "model.safetensors"
    tensors = read_tensors(shard)
    cast = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    write_tensors(shard, cast)
    codes = {name: array for name, (dtype, array) in cast.items() if dtype == "F8_E4M3"}
    plain = read_tensors(twin / shard.name) | {name: ("BF16", array) for name, array in codes.items()}
    write_tensors(twin / shard.name, plain)
    notices = check_same(folder, twin).notices
    assert any("FP8 weights are taken as they are stored" in notice for notice in notices)


def test_an_fp8_weight_without_its_scale_is_refused(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, fp8(kind="scalar"))
    shard = folder / "model.safetensors"
    tensors = read_tensors(shard)
    lost = "model.layers.1.mlp.up_proj.weight"
    write_tensors(shard, {name: tensor for name, tensor in tensors.items() if name != f"{lost}_scale_inv"})
    with pytest.raises(MintError, match=f"1 FP8 weights have no scale.*{lost}"):
        open_source(folder)


def test_a_config_that_speaks_of_scales_needs_them(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, fp8(kind="scalar"), {"quantization_config": {"quant_method": "fp8"}})
    shard = folder / "model.safetensors"
    tensors = read_tensors(shard)
    write_tensors(shard, {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")})
    with pytest.raises(MintError, match="FP8 weights have no scale"):
        open_source(folder)


def test_an_fp8_weight_beside_a_tensor_of_unknown_meaning_is_refused(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, fp8(kind="row", scale="_quant_factor"))
    with pytest.raises(MintError, match="FP8 weights have no scale that fits them"):
        open_source(folder)


def test_scales_of_inputs_and_caches_are_set_aside(make_model: Make) -> None:
    folder = make_model("llama")
    twin = write_encoded(folder, MATRICES, fp8(kind="scalar"))
    shard = folder / "model.safetensors"
    tensors = read_tensors(shard)
    one = tensors["model.layers.0.self_attn.k_proj.weight_scale_inv"]
    extra = {f"model.layers.0.self_attn.{name}": one for name in ("k_proj.input_scale", "attn.k_scale", "k_zero_point")}
    write_tensors(shard, tensors | extra)
    source = check_same(folder, twin)
    assert extra.keys() <= set(source.dropped)
    assert not any("cast" in notice for notice in source.notices)


def test_int8_matrices_without_scales_are_refused_by_name(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, int8())
    shard = folder / "model.safetensors"
    tensors = read_tensors(shard)
    write_tensors(shard, {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale")})
    with pytest.raises(MintError, match=r"tensor model\.layers\.0\..*weight is encoded in a way that mint does not"):
        open_source(folder)


def test_a_scale_that_nothing_uses_is_an_error(make_model: Make) -> None:
    folder = make_model("deepseek_v3")
    shard = folder / "model.safetensors"
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"  # the class drops it
    tensors = read_tensors(shard)
    assert name not in open_source(folder).dropped
    weight = next(name for name in tensors if name.endswith("o_proj.weight"))
    tensors[f"{weight}_zero_points"] = tensors["model.norm.weight"]
    write_tensors(shard, tensors)
    with pytest.raises(MintError, match=r"o_proj\.weight_zero_points"):
        open_source(folder)
