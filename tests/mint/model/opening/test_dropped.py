"""A tensor that means something and that no class reads is told, and never one that means nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mint.model.source import open_source
from tests.worlds.encodings import read_tensors, write_tensors
from tests.worlds.zoo import ARCHITECTURES
from tools.models.families import write_family

Make = Callable[..., Path]
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"  # mlx_lm's ernie4_5_moe drops it


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_dropped_tensor_of_a_computed_layer_is_a_notice_unless_it_is_zero(value: float, tmp_path: Path) -> None:
    folder = write_family("ernie4_5_moe", tmp_path / "model")
    tensors = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", tensors | {BIAS: ("F32", np.full((1, 4), value, np.float32))})
    notices = [notice for notice in open_source(folder).notices if "drops" in notice]
    told = [f"mlx_lm drops 1 tensors of layers that it computes, first {BIAS} F32 [1, 4]; it computes without"]
    assert notices == (told if value else [])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_that_models_of_the_zoo_drop_is_of_a_computed_layer(name: str, make_model: Make) -> None:
    assert not any("of layers that it computes" in notice for notice in open_source(make_model(name)).notices)
