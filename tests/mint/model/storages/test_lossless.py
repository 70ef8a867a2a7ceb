"""A model of stored integers or 4-bit floats is written without loss, whatever the rounding and the rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.formats.format import KEEP
from mint.kernels import oracle
from mint.model.source import open_source
from mint.pipeline import quantize
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.quality.evaluate import evaluate
from mint.quality.sequences import TextSize
from tests.worlds.encodings import (
    Encoding,
    awq,
    bnb_4bit,
    bnb_int8,
    fp8,
    gptq,
    int8,
    mxfp4,
    nvfp4,
    packed,
    torchao,
    write_encoded,
)

Make = Callable[..., Path]
EXPERTS = r"experts\.(\d+\.)?\w+_proj\.weight$"
MATRICES = r"proj\.weight$"
TEXT = TextSize(6, 24)  # of compensation
PARTS = ("_blocks", ".weight_packed", ".qweight")


@pytest.mark.parametrize(
    ("family", "pattern", "encoding", "format", "recipe"),
    [
        ("gpt_oss", EXPERTS, mxfp4("_blocks"), "mxfp4", Recipe()),
        ("gpt_oss", EXPERTS, mxfp4("_blocks"), "mxfp4", Recipe(objective="mint", rounding="search", min_bits=8)),
        ("deepseek_v3", EXPERTS, packed(), "4/32", Recipe()),
        ("llama", MATRICES, packed(group=64), "4/64", Recipe(rounding="search", min_bits=6)),
        ("llama", MATRICES, packed(), "4/32", Recipe(rounding="compensate")),
        ("llama", MATRICES, packed(zeros=True), "5/32", Recipe()),  # one bit more for odd zero points
        ("llama", MATRICES, awq(), "5/64", Recipe(dtype="float16")),
        ("llama", MATRICES, gptq(group=128), "5/128", Recipe(dtype="float16", rounding="search")),
    ],
)
def test_the_largest_budget_carries_the_codes_over(
    family: str, pattern: str, encoding: Encoding, format: str, recipe: Recipe, make_model: Make, tmp_path: Path
) -> None:
    folder = make_model(family, tokenizer=True)
    write_encoded(folder, pattern, encoding, {"quantization_config": {"quant_method": "of the test"}})
    source = open_source(folder, dtype=recipe.dtype)
    encoded = {unit.path for unit in source.units if any(name.endswith(PARTS) for name in unit.sources)}
    plan = allocate(analyze(source, tmp_path / "a.mint", rounding=recipe.rounding), "max", recipe)
    assemble(plan, source, tmp_path / "out", text=TEXT)
    assert encoded and verify(tmp_path / "out", source).passed
    for choice in plan.choices:
        assert str(choice.format) == (format if choice.path in encoded else str(KEEP)), choice.path
        assert choice.error == 0
    stored: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    weights = source.arrays()
    for path in encoded:
        parts = [stored[f"{path}.{part}"] for part in ("weight", "scales", "biases") if f"{path}.{part}" in stored]
        choice = next(choice for choice in plan.choices if choice.path == path)
        restored = oracle.dequantize(tuple(parts), choice.format)
        weight = weights.pop(f"{path}.weight")
        assert mx.array_equal(restored.astype(weight.dtype), weight)


def test_formats_that_the_user_names_bind_lossless_ones_too(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("llama")
    write_encoded(folder, MATRICES, packed())
    plan = quantize(folder, "max", tmp_path / "out", Recipe(formats=("8/64",))).plan
    assert {str(choice.format) for choice in plan.choices} <= {"8/64", "keep"}


@pytest.mark.parametrize(
    ("family", "encoding"),
    [
        ("qwen3_moe", fp8(scale_dtype="U8")),
        ("mixtral", fp8("F8_E5M2", kind="row", scale="_scale")),
        ("gemma3_text", int8(zeros=True)),
        ("phi3", torchao(int8("group64", zeros=True))),
        ("deepseek_v3", mxfp4("weight")),
        ("qwen3_next", nvfp4()),
        ("olmo2", packed(3, group=0, zeros=True)),
        ("llama", packed(6, old=True, zeros=True)),
        ("llama", awq()),
        ("qwen2", gptq(3, act_order=True)),
        ("qwen3", gptq(symmetric=True, v2=True)),
        ("gemma2", bnb_4bit(double=True, storage="BF16")),
        ("glm4_moe", bnb_int8),
    ],
)
def test_a_generous_budget_keeps_the_function_of_the_decoded_model(
    family: str, encoding: Encoding, make_model: Make, tmp_path: Path
) -> None:
    folder = make_model(family, tokenizer=True)
    settings = {"weight_block_size": [128, 128], "quant_method": "of the test", "sym": family == "qwen3"}
    twin = write_encoded(folder, MATRICES, encoding, {"quantization_config": settings})
    assert quantize(folder, "max", tmp_path / "out").verification.passed
    for reference in (twin, folder):
        assert evaluate(tmp_path / "out", reference, tokens=64, window=32, seed=0).estimates["kl_mean"].value < 1e-4
