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

Make = Callable[..., Path]
MATRICES = r"(proj|w[123])\.weight$"
EXPERTS = r"experts\.\w+_proj\.weight$"
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
BITS_8 = {"quantization_config": {**COMPRESSED, "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}}


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
        ("llama", MATRICES, packed(8, group=0), BITS_8),
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
        ("llama", MATRICES, gptq(v2=True), {"quantization_config": {"checkpoint_format": "gptq_v2"}}),
    ],
)
def test_a_packed_checkpoint_opens_as_its_decoded_values(
    family: str, pattern: str, encoding: Encoding, config: dict[str, Any], make_model: Make
) -> None:
    folder = make_model(family)
    twin = write_encoded(folder, pattern, encoding, config)
    check_same(folder, twin)
    check_reference(folder, twin)


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
