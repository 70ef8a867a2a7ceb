"""A model computes the same, whichever way it is opened."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx.utils import tree_map
from mlx_lm import convert
from mlx_lm.utils import load_model

from mint.core.errors import MintError
from mint.model.passes.logits import logits_of
from mint.quality.forward import (
    all_logits,
    as_numpy,
    open_narrow,
    open_used,
    open_wide,
    vocabulary_size,
)

TOKENS = np.arange(1, 13, dtype=np.int32).reshape(2, 6)
QUANTIZED = ["llama", "gemma3_text", "qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "llama4", "gpt2"]


def _stock(folder: Path, dtype: mx.Dtype) -> npt.NDArray[np.float32]:
    """The logits of mlx_lm's own model with its floats in `dtype`."""
    model = load_model(folder, lazy=True)[0]
    cast = tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    model.update(cast)
    return as_numpy(logits_of(model, mx.array(TOKENS)))


def _difference(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", QUANTIZED)
def test_dequantized_modules_compute_what_the_quantized_ones_do(
    name: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "quantized"
    convert(str(make_model(name, tokenizer=True)), str(folder), quantize=True, q_bits=4, q_group_size=32)
    logits = as_numpy(logits_of(open_used(folder), mx.array(TOKENS)))
    assert _difference(logits, _stock(folder, mx.float32)) < 1e-3


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_every_mode_of_mlx_is_dequantized(mode: str, bits: int, group_size: int, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / mode
    convert(str(llama), str(folder), quantize=True, q_bits=bits, q_group_size=group_size, q_mode=mode)
    logits = as_numpy(logits_of(open_used(folder), mx.array(TOKENS)))
    assert _difference(logits, _stock(folder, mx.float32)) < 1e-3


def test_wide_is_the_model_in_float32(llama: Path) -> None:
    logits = as_numpy(logits_of(open_wide(llama), mx.array(TOKENS)))
    assert _difference(logits, _stock(llama, mx.float32)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe", "mamba2"])
def test_the_way_of_a_gpu_computes_the_same(name: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    plain, folder = make_model(name, tokenizer=True), tmp_path / "quantized"
    convert(str(plain), str(folder), quantize=True, q_bits=4, q_group_size=32)
    for path in (plain, folder):
        logits = as_numpy(logits_of(open_wide(path, on_gpu=True), mx.array(TOKENS)))
        assert _difference(logits, as_numpy(logits_of(open_wide(path), mx.array(TOKENS)))) < 1e-3


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_narrow_is_as_noisy_as_mlx_in_bf16(name: str, make_model: Callable[..., Path]) -> None:
    folder = make_model(name)
    exact = _stock(folder, mx.float32)
    narrow = _difference(as_numpy(logits_of(open_narrow(folder), mx.array(TOKENS))), exact)
    stock = _difference(_stock(folder, mx.bfloat16), exact)
    assert 0.5 < narrow / stock < 2


def test_logits_come_in_blocks_and_predict_all_but_the_first_token(llama: Path) -> None:
    model = open_wide(llama)
    whole = as_numpy(logits_of(model, mx.array(TOKENS)))[:, :-1]
    blocks = list(all_logits(model, TOKENS, 512, block=1))
    assert [rows for rows, _ in blocks] == [slice(0, 1), slice(1, 2)]
    np.testing.assert_allclose(np.concatenate([logits for _, logits in blocks]), whole, atol=1e-5)
    assert vocabulary_size(llama) == 512


def test_a_folder_that_mlx_lm_does_not_load_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model()
    (folder / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(MintError, match="mlx_lm does not load it"):
        open_wide(folder)
    with pytest.raises(MintError, match=r"no config.json found"):
        open_wide(tmp_path)


def test_an_original_computes_as_its_config_says_in_the_words_of_either_transformers(
    make_model: Callable[..., Path],
) -> None:
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for words in ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {}):
        folder = make_model("llama", folder=f"model{len(logits)}")
        config = json.loads((folder / "config.json").read_text())
        config.pop("rope_theta", None)
        (folder / "config.json").write_text(json.dumps(config | words))
        logits[str(words)] = as_numpy(logits_of(open_wide(folder), mx.array(TOKENS)))
    old, new, neither = logits.values()
    np.testing.assert_array_equal(new, old)
    assert _difference(neither, old) > 1e-3
