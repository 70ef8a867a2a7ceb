"""A cast to float16 that changes weights is refused by name; one that does not is as good as any."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mint
from mint.analysis.cast_check import is_wider
from mint.core.errors import MintError
from mint.model.source import open_source
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize

Make = Callable[..., Path]
NAME = "model.layers.1.mlp.up_proj.weight"


def scaled(folder: Path, factor: float, name: str = NAME) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = (tensors[name].astype(np.float32) * factor).astype(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize(
    ("factor", "fault"),
    [(1e8, "beyond its largest number, 65504"), (1e-8, "too small, and .* would be lost"), (3e-38, "too small")],
)
@pytest.mark.parametrize("name", [NAME, "model.norm.weight"])
def test_a_cast_that_loses_weights_names_them(
    dtype: str, factor: float, fault: str, name: str, make_model: Make, tmp_path: Path
) -> None:
    folder = scaled(make_model("llama", dtype=dtype), factor, name)
    with pytest.raises(MintError, match=rf"{name}: float16 cannot hold.*{fault}.*bfloat16") as caught:
        mint.analyze(open_source(folder, dtype="float16"), tmp_path / "a.mint")
    assert "ownload" not in str(caught.value)
    mint.analyze(open_source(folder, dtype="bfloat16"), tmp_path / "b.mint")


def test_a_float16_of_the_config_is_a_cast_too(make_model: Make, tmp_path: Path) -> None:
    folder = scaled(make_model("llama"), 1e-8)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch_dtype": "float16"}))
    with pytest.raises(MintError, match="float16 cannot hold"):
        mint.analyze(open_source(folder), tmp_path / "a.mint")


def test_a_cast_within_the_range_works(make_model: Make, tmp_path: Path) -> None:
    for index, dtype in enumerate(("BF16", "F32")):
        source = open_source(make_model("llama", str(index), dtype=dtype), dtype="float16")
        mint.analyze(source, tmp_path / f"{index}.mint")
        assert "to F16" in source.notices[0]


def test_a_checkpoint_of_float16_is_no_cast(make_model: Make, tmp_path: Path) -> None:
    source = open_source(scaled(make_model("llama", dtype="F16"), 1e-6))
    assert source.notices == ()
    mint.analyze(source, tmp_path / "a.mint")


def test_parts_that_a_class_keeps_in_float32_stay(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("deepseek_v3"), dtype="float16")
    kept = [parameter.name for parameter in source.parameters if parameter.dtype == "F32"]
    assert any("e_score_correction_bias" in name for name in kept)


def test_encoded_weights_are_looked_at_too(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("deepseek_v3_fp8"), dtype="float16")
    assert {unit.dtype for unit in source.units if unit.role != "router"} == {"F16"}
    mint.analyze(source, tmp_path / "a.mint")


def test_shards_that_are_elsewhere_are_missed_for_casts_alone() -> None:
    """Integers with scales in float16 are float16 already; floats of a wider range are not."""
    assert not is_wider(["F16"])
    assert not is_wider(["U32", "F16", "F16"])
    assert all(is_wider(["U32", "F16", other]) for other in ("BF16", "F32", "F8_E5M2"))
    assert is_wider(["U8", "U8"])  # scales that are powers of two


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_that_overflows_in_float16_is_refused_where_it_runs(
    dtype: str, make_model: Make, tmp_path: Path
) -> None:
    """Its weights fit, the values between its layers do not."""
    folder = make_model("llama", tokenizer=True)
    for name in ("up_proj", "down_proj"):
        scaled(folder, 3e4, f"model.layers.1.mlp.{name}.weight")
    source = open_source(folder, dtype=dtype)
    plan = mint.allocate(mint.analyze(source, tmp_path / "a.mint", rounding="compensate"), "0.7x", Recipe("compensate"))
    if dtype == "bfloat16":
        mint.assemble(plan, source, tmp_path / "out", text=TextSize(2, 16))
        return
    with pytest.raises(MintError, match=r"between its layers reach .*float16 ends at 65504.*dtype bfloat16"):
        mint.assemble(plan, source, tmp_path / "out", text=TextSize(2, 16))
