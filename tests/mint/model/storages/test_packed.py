"""Checkpoints of 4-bit floats and packed integers open as the plain checkpoint of their decoded values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mint.core.errors import MintError
from mint.model.source import open_source
from tests.mint.model.storages.twins import check_reference, check_same
from tests.worlds.encodings import (
    Encoding,
    awq,
    bnb_4bit,
    bnb_int8,
    gptq,
    mxfp4,
    nvfp4,
    packed,
    read_tensors,
    transposed,
    write_encoded,
    write_tensors,
)
from tools.models.families import write_family

Make = Callable[..., Path]
MATRICES = r"(proj|w[123])\.weight$"
EXPERTS = r"experts\.\w+_proj\.weight$"
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
BNB = {"quant_method": "bitsandbytes"}
GPTQ = {"quantization_config": {"quant_method": "gptq"}}


def of_bits(bits: int) -> dict[str, Any]:
    """The config of compressed-tensors for weights of these bits."""
    groups = {"group_0": {"weights": {"num_bits": bits}}}
    return {"quantization_config": {**COMPRESSED, "config_groups": groups}}


@pytest.mark.parametrize(
    ("family", "pattern", "encoding", "config"),
    [
        ("llama", MATRICES, mxfp4(), {"quantization_config": COMPRESSED}),
        ("qwen3_moe", MATRICES, mxfp4("weight"), {}),
        ("gpt_oss", EXPERTS, mxfp4("_blocks"), {"quantization_config": {"quant_method": "mxfp4"}}),
        ("gpt_oss", EXPERTS, transposed, {}),
        ("llama", MATRICES, nvfp4(), {}),
        ("qwen3_moe", MATRICES, nvfp4(compressed_tensors=True), {"quantization_config": COMPRESSED}),
        ("deepseek_v3", r"experts\.\d+\.\w+\.weight", packed(), {"quantization_config": COMPRESSED}),
        ("llama", MATRICES, packed(group=64, zeros=True), {"quantization_config": COMPRESSED}),
        ("llama", MATRICES, packed(8, group=0), of_bits(8)),
        ("llama", MATRICES, packed(ordered=True), {"quantization_config": COMPRESSED}),
        ("llama", MATRICES, awq(), {"quantization_config": {"quant_method": "awq", "bits": 4}}),
        ("qwen3_moe", MATRICES, awq(128), {"quantization_config": {"quant_method": "awq", "bits": 4}}),
        ("llama", MATRICES, gptq(), {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("llama", MATRICES, gptq(act_order=True), {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("llama", MATRICES, gptq(8, 128), {"quantization_config": {"quant_method": "gptq", "bits": 8}}),
        ("llama", MATRICES, gptq(3, 128), {"quantization_config": {"quant_method": "gptq", "bits": 3}}),
        ("llama", MATRICES, bnb_4bit(), {"quantization_config": {"quant_method": "bitsandbytes"}}),
        (
            "qwen3_moe",
            MATRICES,
            bnb_4bit("fp4", double=True),
            {"quantization_config": {"quant_method": "bitsandbytes"}},
        ),
        ("llama", MATRICES, bnb_int8, {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("llama", MATRICES, bnb_4bit(double=True, storage="BF16"), {"quantization_config": BNB}),
        ("mixtral", MATRICES, bnb_4bit(storage="F32"), {"quantization_config": BNB}),
        ("llama", MATRICES, mxfp4("scale"), {"quantization_config": {"quant_method": "fp8"}}),
        ("llama", MATRICES, gptq(v2=True), {"quantization_config": {"checkpoint_format": "gptq_v2"}}),
        ("llama", MATRICES, gptq(symmetric=True), {"quantization_config": {"quant_method": "gptq", "sym": True}}),
        ("llama", MATRICES, gptq(symmetric=True, v2=True), {"quantization_config": {"sym": True, "bits": 4}}),
        *(("llama", MATRICES, gptq(bits, group), GPTQ) for bits in (2, 3, 4, 8) for group in (0, 32)),
        *(("qwen2", MATRICES, awq(group), {"quantization_config": {"quant_method": "awq"}}) for group in (0, 32)),
        *(
            ("llama", MATRICES, packed(bits, group, zeros=True), {"quantization_config": COMPRESSED})
            for bits in (2, 3, 4, 5, 6, 7, 8)
            for group in (0, 32)
        ),
        *(("llama", MATRICES, packed(bits, zeros=True, old=True), of_bits(bits)) for bits in (2, 3, 4, 5, 6, 7)),
        ("llama", MATRICES, packed(unset=True), {"quantization_config": COMPRESSED}),
        ("mixtral", MATRICES, packed(group=64, zeros=True, unset=True), {"quantization_config": COMPRESSED}),
    ],
)
def test_a_packed_checkpoint_opens_as_its_decoded_values(
    family: str, pattern: str, encoding: Encoding, config: dict[str, Any], make_model: Make
) -> None:
    folder = make_model(family)
    twin = write_encoded(folder, pattern, encoding, config)
    check_same(folder, twin)
    check_reference(folder, twin)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_unused_codes_at_the_end_of_a_row_are_none_of_the_weight(bits: int, old: bool, tmp_path: Path) -> None:
    folder = write_family("llama", tmp_path / "model", intermediate_size=101)
    twin = write_encoded(folder, r"proj\.weight$", packed(bits, group=0, zeros=True, old=old), of_bits(bits))
    check_same(folder, twin)
    check_reference(folder, twin)


def test_zero_points_of_no_version_of_gptq_are_refused(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, gptq(), {"quantization_config": {"quant_method": "gptq", "sym": True}})
    tensors = read_tensors(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".qzeros")]:
        tensors[name] = "I32", np.zeros_like(tensors[name][1])
    write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(MintError, match=r"weights are symmetric, but .*qzeros has zero points 0;"):
        open_source(folder)


def test_int8_in_the_tiles_of_a_gpu_is_refused(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, bnb_int8)
    tensors = read_tensors(folder / "model.safetensors")
    tiles = {name: ("U8", np.array(2, np.uint8)) for name in tensors if name.endswith("weight_format")}
    write_tensors(folder / "model.safetensors", tensors | tiles)
    with pytest.raises(MintError, match=r"is encoded in a way .*weight_format U8"):
        open_source(folder)


@pytest.mark.parametrize("location", ["input", "weight_input"])
def test_rotations_of_activations_are_refused(location: str, make_model: Make) -> None:
    folder = make_model("llama")
    steps = {"config_groups": {"R4": {"type": "hadamard", "apply": [{"location": location, "targets": ["Linear"]}]}}}
    write_encoded(folder, MATRICES, packed(), {"quantization_config": {**COMPRESSED, "transform_config": steps}})
    if location != "input":
        assert open_source(folder).units
        return
    with pytest.raises(MintError, match=r"transform_config rotates activations at run time \(input\)"):
        open_source(folder)


def test_4_bit_floats_without_the_scale_of_the_tensor_are_refused_by_name(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, nvfp4())
    tensors = read_tensors(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("weight_scale_2")}
    write_tensors(folder / "model.safetensors", kept)
    with pytest.raises(MintError, match=r"is encoded in a way .*weight_scale F8_E4M3 .*weight U8"):
        open_source(folder)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_of_zeros_that_a_class_does_not_have_are_left_out(value: float, make_model: Make) -> None:
    folder = make_model("llama")
    twin = write_encoded(folder, MATRICES, gptq(), {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    tensors = read_tensors(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".qweight")]:
        rows = tensors[name.replace("qweight", "scales")][1].shape[1]
        tensors[name.replace("qweight", "bias")] = "F16", np.full(rows, value, np.float16)
    write_tensors(folder / "model.safetensors", tensors)
    if not value:
        assert not any("drops" in notice for notice in check_same(folder, twin).notices)
        return
    with pytest.raises(MintError, match=r"do not fit .*\.bias"):
        open_source(folder)
