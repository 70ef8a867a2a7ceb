"""A file of tensor types names the tensors that llama.cpp's converter writes, and only types that it has."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.exports.tensor_types import tensor_types
from mint.model.gguf.names import tensor_names
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from tests.worlds.gguf_world import write_gguf
from tests.worlds.zoo import write_model
from tools.models.families import write_family

Make = Callable[..., Path]
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3_text", "phi3", "olmo2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patterns_find_every_matrix_of_the_real_file(family: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if family == "qwen3_moe":  # the zoo's has a dense layer, which GGUF cannot say
        write_family(family, model, mlp_only_layers=[], decoder_sparse_step=1)
    else:
        write_model(family, model)
    source = open_source(model)
    plan = allocate(analyze(source, tmp_path / "a.mint"), "0.4x", Recipe(veto_db=-100.0))
    text, unnamed = tensor_types(plan)
    assert not unnamed
    write_gguf(model, tmp_path / "model.gguf", tokens="")
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    matrices = {tensor.name for tensor in tensors if len(tensor.shape) > 1}
    patterns = [line.rpartition("=") for line in text.splitlines()]
    found = {name for name in matrices for pattern, _, _ in patterns if re.search(pattern, name)}
    assert found == matrices
    types = {kind.name.lower() for kind in gguf.GGMLQuantizationType}
    assert {kind for _, _, kind in patterns} <= types


def test_rows_that_blocks_do_not_divide_get_a_type_in_smaller_blocks(make_model: Make, tmp_path: Path) -> None:
    plan = allocate(analyze(open_source(make_model("llama")), tmp_path / "a.mint"), "0.4x", Recipe(veto_db=-100.0))
    columns = {choice.path: choice.shape[-1] for choice in plan.choices}
    names = tensor_names("llama", list(columns))
    types = dict(line.rsplit("=", 1) for line in tensor_types(plan)[0].splitlines())
    for path, count in columns.items():
        kind = gguf.GGMLQuantizationType[types[f"^{re.escape(names[path])}$"].upper()]
        assert count % gguf.GGML_QUANT_SIZES[kind][0] == 0


def test_a_model_that_llama_cpp_does_not_know_is_refused() -> None:
    with pytest.raises(MintError, match="no architecture for a model of type mystery"):
        tensor_names("mystery", ["model.layers.0.mlp.up_proj"])
