"""Verification notices a wrongly decoded source; every other check compares the output with itself."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

from mint.assembly.decoding import check_decoding
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.model.checkpoint.reader import open_stored
from mint.model.source import open_source
from mint.model.storages import decoding, fp4, scaled
from mint.model.storages.storage import Arrays, Encoded, Storage
from mint.pipeline import quantize
from mint.plan.recipe import Recipe
from tests.worlds.encodings import fp8, gptq, mxfp4, write_encoded

Make = Callable[..., Path]
RECIPE = Recipe(veto_db=-100.0)
MATRICES = r"layers.*_proj\.weight$"


def _detail(model: Path, output: Path, budget: str = "9bpw") -> str:
    quantize(model, budget, output, RECIPE)
    checks = verify(output, open_source(model)).checks
    assert all(check.passed for check in checks)
    return next(check.detail for check in checks if check.name == "decoding")


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss_mxfp4"])
def test_plain_and_stacked_weights_are_what_numpy_reads(name: str, make_model: Make, tmp_path: Path) -> None:
    detail = _detail(make_model(name, shards=2), tmp_path / "out", "max")
    assert "decode to the measured weights in numpy too" in detail


@pytest.mark.parametrize("encoding", [fp8(), fp8("F8_E5M2", ".scale", "row"), mxfp4(), gptq()])
def test_encoded_weights_are_what_numpy_decodes(
    encoding: Callable[..., object], make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    write_encoded(model, MATRICES, encoding)  # type: ignore[arg-type]
    assert "decode to the measured weights" in _detail(model, tmp_path / "out", "max")


def _raw_bytes(encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    """The fault of a class of mlx_lm 0.32: the bytes themselves times the scale."""
    return (parts["codes"].astype(mx.float32) * parts["scales"].astype(mx.float32).max()).astype(dtype)


def _without_one_block(decode: Callable[..., mx.array], encoded: Encoded, parts: Arrays, dtype: mx.Dtype) -> mx.array:
    array = decode(encoded, parts, dtype)
    return mx.where(mx.arange(array.shape[-1]) < 32, 1.1 * array, array).astype(dtype)


@pytest.mark.parametrize("budget", ["min", "6bpw", "max"])
@pytest.mark.parametrize(
    ("storage", "encoding", "decode"),
    [
        (scaled.FP8, fp8(), _raw_bytes),
        (scaled.FP8, fp8(), partial(_without_one_block, scaled.FP8.decode)),
        (fp4.MXFP4, mxfp4(), partial(_without_one_block, fp4.MXFP4.decode)),
    ],
)
def test_a_storage_that_decodes_wrongly_fails_verification(
    storage: Storage,
    encoding: Callable[..., object],
    decode: Callable[..., mx.array],
    budget: str,
    make_model: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    write_encoded(model, MATRICES, encoding)  # type: ignore[arg-type]
    monkeypatch.setitem(decoding.STORAGES, storage.name, replace(storage, decode=decode))
    with pytest.raises(MintError, match=r"fails its verification \(decoding: unit .* its tensors are decoded wrongly"):
        quantize(model, budget, tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [lambda packed: packed << 1, lambda packed: mx.roll(packed, 1, 0)])
def test_a_stored_weight_that_is_another_one_fails_the_check(
    change: Callable[[mx.array], mx.array], make_model: Make, tmp_path: Path
) -> None:
    source = open_source(make_model())
    plan = quantize(source.folder, "9bpw", tmp_path / "out", RECIPE).plan
    check_decoding(plan, source, open_stored(tmp_path / "out"))
    path = tmp_path / "out" / "model.safetensors"
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    packed = {name: change(array) if array.dtype == mx.uint32 else array for name, array in weights.items()}
    mx.eval(packed)
    mx.save_safetensors(str(path), packed)
    (path.parent / "model.safetensors.index.json").unlink()
    with pytest.raises(MintError, match="the stored weight differs from the one that numpy decodes"):
        check_decoding(plan, source, open_stored(path.parent))
