"""Which norm feeds which unit: known pairs of many architectures, and laws that hold for all of them."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from mint.analysis.features.norms import norm_gains, preceding_norms
from mint.model.source import open_source
from tests.conftest import FULL_PRECISION

Make = Callable[..., Path]

# architecture, unit, the norm whose output it takes; none for what comes out of attention, activations or a block
PAIRS = [
    ("llama", "model.layers.0.self_attn.q_proj", "model.layers.0.input_layernorm"),
    ("llama", "model.layers.1.mlp.up_proj", "model.layers.1.post_attention_layernorm"),
    ("llama", "model.layers.1.mlp.down_proj", ""),
    ("llama", "model.layers.1.self_attn.o_proj", ""),
    ("llama", "lm_head", "model.norm"),
    ("llama", "model.embed_tokens", ""),
    ("qwen2", "model.embed_tokens", "model.norm"),
    ("gpt2", "model.h.1.attn.c_attn", "model.h.1.ln_1"),
    ("gpt2", "model.h.0.mlp.c_fc", "model.h.0.ln_2"),
    ("gemma2", "model.layers.0.mlp.gate_proj", "model.layers.0.pre_feedforward_layernorm"),
    ("olmo2", "model.layers.0.self_attn.q_proj", ""),
    ("mamba2", "backbone.layers.0.mixer.out_proj", "backbone.layers.0.mixer.norm"),
    ("qwen3_moe", "model.layers.0.mlp.switch_mlp.up_proj", "model.layers.0.post_attention_layernorm"),
    ("qwen3_moe", "model.layers.0.mlp.switch_mlp.down_proj", ""),
    ("qwen3_moe", "model.layers.0.mlp.gate", "model.layers.0.post_attention_layernorm"),
    ("deepseek_v3", "model.layers.0.self_attn.q_b_proj", "model.layers.0.self_attn.q_a_layernorm"),
    ("gpt_oss", "model.layers.1.mlp.experts.gate_proj", "model.layers.1.post_attention_layernorm"),
    ("lfm2", "model.layers.0.conv.in_proj", "model.layers.0.operator_norm"),
]


@pytest.mark.parametrize(("name", "unit", "norm"), PAIRS)
def test_the_norm_before_a_unit_is_found(name: str, unit: str, norm: str, make_model: Make) -> None:
    source = open_source(make_model(name))
    assert unit in {candidate.path for candidate in source.units}
    assert preceding_norms(source).get(unit, "") == norm


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_every_norm_that_is_found_is_as_long_as_the_rows_that_it_feeds(name: str, make_model: Make) -> None:
    source = open_source(make_model(name))
    gains = norm_gains(source)
    assert gains.keys() == preceding_norms(source).keys()
    shapes = {unit.path: unit.shape for unit in source.units}
    for path, gain in gains.items():
        assert gain.shape == shapes[path][-1:]
        assert np.isfinite(gain).all()
    assert any(unit.role in ("head", "embedding") and unit.path in gains for unit in source.units)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3_next"])
def test_a_gain_is_what_the_norm_multiplies_with(name: str, make_model: Make) -> None:
    """With any bias, for norms that multiply by their weight and by one more."""
    folder = make_model(name)
    source = open_source(folder)
    gains = norm_gains(source)
    modules = dict(load_model(folder, lazy=False)[0].named_modules())
    for unit, norm in preceding_norms(source).items():
        size = modules[norm].weight.size  # of one head where every head has its own
        inputs = mx.random.normal((2, size), key=mx.random.key(0))
        inputs = (inputs - inputs.mean(-1, keepdims=True)) / mx.std(inputs, -1, keepdims=True)
        outputs = np.array((modules[norm](inputs) - modules[norm](-inputs)).astype(mx.float32)) / 2
        assert outputs == pytest.approx(np.array(inputs) * gains[unit][:size], rel=0.02, abs=0.02)
        assert (gains[unit].reshape(-1, size) == gains[unit][:size]).all()
