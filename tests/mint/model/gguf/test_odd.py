"""Odd GGUF files open rightly, or are refused by name before anything is written."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from mint.core.errors import MintError
from mint.model.source import open_source
from tests.worlds.encodings import Array
from tests.worlds.gguf_world import IN_BF16, rewrite_gguf, write_gguf
from tools.models.families import write_family

ODD: list[tuple[dict[str, Any], str]] = [
    ({"is_big_endian": True}, r"\(big-endian\); convert a copy of it: gguf-convert-endian"),
    ({"kind": "adapter"}, "a LoRA adapter, not a model; needed: the model that it is merged into"),
    ({"kind": "mmproj"}, "the vision or audio tower of a model; needed: the file of the text model"),
    ({"kind": "imatrix"}, "the statistics of a calibration, not a model"),
    ({"kind": "other"}, "a GGUF file of the type other, not a model"),
    ({"without": "token_embd"}, r"tensors and no token_embd\.weight; needed: a complete GGUF model"),
    ({"without": "."}, r"0 tensors and no token_embd\.weight"),
    ({"without": "ffn_down"}, r"Missing 1 parameters: model\.layers\.0\.mlp\.down_proj\.weight"),
    *(
        (
            {"retyped": {"blk.0.ffn_down.weight": kind}},
            rf"blk\.0\.ffn_down\.weight is of ggml's type {kind.name}, which",
        )
        for kind in (Type.Q8_1, Type.Q8_K, Type.Q1_0, Type.F64, Type.I8, Type.I16, Type.I32, Type.I64)
    ),
    ({"retyped": {"blk.0.attn_norm.weight": Type.F64}}, r"attn_norm\.weight is of ggml's type F64"),
]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The file of a tiny Llama."""
    settings: dict[str, Any] = {"num_hidden_layers": 1, "sliding_window": None, "layer_types": None}
    folder = write_family("llama", tmp_path / "hf", hidden_size=256, intermediate_size=512, **settings)
    write_gguf(folder, tmp_path / "whole.gguf")
    return tmp_path / "whole.gguf"


@pytest.mark.parametrize(("changes", "message"), ODD, ids=str)
def test_an_odd_file_is_refused_by_name(changes: dict[str, Any], message: str, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(MintError, match=message):
        open_source(rewrite_gguf(whole, tmp_path / "odd.gguf", **changes))


@pytest.mark.parametrize(
    "changes", [{"alignment": 8}, {"alignment": 64}, {"alignment": 4096}, {"kind": "model"}], ids=str
)
def test_an_odd_file_of_the_same_model_opens_as_it(changes: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    expected = open_source(whole).arrays()
    arrays = open_source(rewrite_gguf(whole, tmp_path / "ODD.GGUF", **changes)).arrays()
    assert all(mx.array_equal(array, expected[name]) for name, array in arrays.items())


@pytest.mark.parametrize("exponent", [20, 127, 180])
def test_blocks_of_4_bit_floats_keep_magnitudes_that_float16_lacks(exponent: int, tmp_path: Path) -> None:
    def encode(name: str, values: Array) -> tuple[Type, Array]:
        if "down" not in name:
            return IN_BF16(name, values)
        codes = np.random.default_rng(1).integers(0, 256, (*values.shape[:-1], values.shape[-1] // 32, 17), np.uint8)
        codes[..., 0] = exponent
        return Type.MXFP4, codes.reshape(len(codes), -1)

    folder = write_family("qwen2", tmp_path / "hf", num_hidden_layers=1)
    values = write_gguf(folder, tmp_path / "tiny.gguf", encode)
    name = "model.layers.0.mlp.down_proj.weight"
    array = open_source(tmp_path / "tiny.gguf").arrays()[name].astype(mx.float32)
    assert np.array_equal(np.array(array), values[name])
    assert np.abs(values[name]).max() == 6 * 2.0 ** (exponent - 127)
