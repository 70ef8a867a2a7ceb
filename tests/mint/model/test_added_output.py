"""The unit whose output a layer adds to its own is found by trying, in every architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear

from mint.analysis.probes.replay import Replay
from mint.model.passes.added_output import AddedOutput, added_output
from mint.model.passes.logits import logits_of
from mint.quality.forward import open_wide

TOKENS = mx.array([[1, 2, 3, 4]])


def added_in_first_layer(folder: Path, names: list[str]) -> AddedOutput | None:
    model: Any = open_wide(folder)
    path = "model.layers.0"
    replay = Replay(model, [f"model.layers.{index}" for index in range(len(model.layers))], TOKENS)

    def answer() -> Any:
        with replay.up_to(path) as answers:
            logits_of(model, TOKENS)
        return answers[0]

    modules = {name: module for name, module in model.named_modules() if name.startswith(path)}
    return added_output(modules, [f"{path}.{name}" for name in names], answer)


DENSE = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
SPARSE = DENSE[:2]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_last_matrix_of_a_layer_is_added(name: str, make_model: Callable[..., Path]) -> None:
    added = added_in_first_layer(make_model(name), DENSE)
    assert added
    assert (added.path, added.is_normalized) == ("model.layers.0.mlp.down_proj", False)
    np.testing.assert_allclose(np.array(added.gain), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "olmo2"])
def test_a_norm_may_stand_before_the_sum(name: str, make_model: Callable[..., Path]) -> None:
    added = added_in_first_layer(make_model(name), DENSE)
    assert added
    assert (added.path, added.is_normalized) == ("model.layers.0.mlp.down_proj", True)
    norm: Any = open_wide(make_model(name)).model.layers[0].post_feedforward_layernorm
    np.testing.assert_allclose(np.array(added.gain), np.array(norm(mx.ones(added.gain.shape))), rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_before_experts_nothing_is_added_to_the_output(name: str, make_model: Callable[..., Path]) -> None:
    assert added_in_first_layer(make_model(name), SPARSE) is None


class Scaled(Module):
    """x + 0.25 down(x), and a bend in the way of `up`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.up, self.down = Linear(8, 8), Linear(8, 8)

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.tanh(self.up(x))
        result: mx.array = x + 0.25 * self.down(x)
        return result


def test_a_factor_before_the_output_is_found() -> None:
    model: Any = Scaled()
    example = mx.random.normal((1, 4, 8), key=mx.random.key(0))
    added = added_output(dict(model.named_modules()), ["up", "down"], lambda: model(example))
    assert added
    assert added.path == "down"
    np.testing.assert_allclose(np.array(added.gain), 0.25, rtol=1e-4)


def test_an_answer_of_several_parts_has_none() -> None:
    model: Any = Scaled()
    example = mx.random.normal((1, 4, 8), key=mx.random.key(0))
    assert added_output(dict(model.named_modules()), ["down"], lambda: (model(example), 1)) is None
