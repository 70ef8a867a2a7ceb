"""A model that MLX has quantized is taken again when the user insists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import convert

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.model.checkpoint.reader import open_stored
from mint.model.source import open_source
from mint.pipeline import quantize
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from tests.mint.model.storages.twins import check_reference, check_same
from tests.worlds.encodings import Array, Tensors, edit_config, quantized, write_encoded

Make = Callable[..., Path]
MATRICES = r"(proj|embed_tokens)\.weight$"
AGAIN = Recipe(requantize=True)
TEXT = TextSize(6, 24)  # of compensation
MODES = [*(("affine", bits, 64) for bits in (2, 3, 4, 5, 6, 8)), ("affine", 4, 32), ("affine", 8, 128)]
MODES += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


def _entry(mode: str, bits: int, group: int) -> dict[str, Any]:
    return {"group_size": group, "bits": bits, "mode": mode}


@pytest.mark.parametrize(("mode", "bits", "group"), MODES)
def test_every_mode_is_decoded_exactly(mode: str, bits: int, group: int, make_model: Make) -> None:
    folder = make_model("llama")
    twin = write_encoded(folder, MATRICES, quantized(mode, bits, group), {"quantization": _entry(mode, bits, group)})
    check_same(folder, twin)
    check_reference(folder, twin)


def test_modules_with_entries_of_their_own_are_decoded_by_them(make_model: Make) -> None:
    def encode(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[Tensors, Array]:
        return quantized(bits=8, group=32)(rng, name, shape) if "down" in name else quantized()(rng, name, shape)

    folder = make_model("llama")
    paths = [unit.path for unit in open_source(folder).units if unit.path.endswith("down_proj")]
    entries = {path: _entry("affine", 8, 32) for path in paths} | {"lm_head": False}
    twin = write_encoded(folder, MATRICES, encode, {"quantization": _entry("affine", 4, 64) | entries})
    source = check_same(folder, twin)
    assert {str(source.carried[path]) for path in paths} == {"8/32"}
    edit_config(folder, {"quantization": _entry("affine", 4, 64) | {"model.other": _entry("affine", 8, 32)} | entries})
    with pytest.raises(MintError, match=r"an entry for model.other, and no packed weight"):
        open_source(folder, requantize=True)


def test_without_the_option_the_refusal_names_it(make_model: Make) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, quantized(), {"quantization": _entry("affine", 4, 64)})
    with pytest.raises(MintError, match=r"already quantized by MLX.*requantize"):
        open_source(folder)


@pytest.mark.parametrize(
    ("mode", "bits", "group", "rounding"),
    [("affine", 4, 64, "compensate"), ("affine", 8, 64, "nearest"), ("nvfp4", 4, 16, "nearest")],
)
def test_the_largest_budget_copies_the_modules(
    mode: str, bits: int, group: int, rounding: str, make_model: Make, tmp_path: Path
) -> None:
    folder = make_model("llama", tokenizer=True)
    write_encoded(folder, MATRICES, quantized(mode, bits, group), {"quantization": _entry(mode, bits, group)})
    source = open_source(folder, requantize=True)
    plan = allocate(analyze(source, tmp_path / "a.mint", rounding=rounding), "max", AGAIN)
    assemble(plan, source, tmp_path / "out", text=TEXT)
    assert verify(tmp_path / "out", source).passed
    assert any("errors are measured against it" in notice for notice in source.notices)
    stored, written = open_stored(folder), open_stored(tmp_path / "out")
    assert len(written.tensors) == len(stored.tensors) - 3  # `inv_freq` of three layers
    for name in written.tensors:
        assert mx.array_equal(stored.array(name), written.array(name)), name


def test_fewer_bits_than_those_of_the_source_are_chosen_by_error(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("llama", tokenizer=True)
    write_encoded(folder, MATRICES, quantized(bits=8), {"quantization": _entry("affine", 8, 64)})
    whole = quantize(folder, "max", tmp_path / "max", AGAIN, analysis=tmp_path / "a.mint")
    half = quantize(folder, whole.plan.planned_bytes * 6 // 10, tmp_path / "half", AGAIN, analysis=tmp_path / "a.mint")
    assert half.verification.passed and half.plan.planned_bytes < whole.plan.planned_bytes
    assert max(choice.error for choice in half.plan.choices) > 0 == max(choice.error for choice in whole.plan.choices)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3", "gemma3_text", "qwen3_next"])
def test_a_model_of_mlx_lm_convert_is_copied_whole(family: str, make_model: Make, tmp_path: Path) -> None:
    original, folder = make_model(family, tokenizer=True), tmp_path / "converted"
    convert(str(original), str(folder), quantize=True, q_group_size=32, q_bits=4)
    result = quantize(folder, "max", tmp_path / "out", AGAIN)
    assert result.verification.passed
    stored, written = open_stored(folder), open_stored(tmp_path / "out")
    assert max(choice.error for choice in result.plan.choices) == 0
    kept = {choice.path for choice in result.plan.choices if choice.format == KEEP}
    assert all(path.endswith("shared_expert_gate") for path in kept)  # one row: the entries of the header are larger
    for name in written.tensors:
        assert name.rpartition(".")[0] in kept or mx.array_equal(stored.array(name), written.array(name)), name
