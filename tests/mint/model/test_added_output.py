"""The unit whose output a layer adds to its own is found by trying, in every architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear

from mint.analysis.probes.replay import Replay
from mint.model.passes.added_output import added_output
from mint.model.passes.logits import logits_of
from mint.quality.forward import open_wide

TOKENS = mx.array([[1, 2, 3, 4]])


def added_in_first_layer(folder: Path, names: list[str]) -> tuple[str, float]:
    model: Any = open_wide(folder)
    path = "model.layers.0"
    replay = Replay(model, [f"model.layers.{index}" for index in range(len(model.layers))], TOKENS)

    def answer() -> Any:
        with replay.up_to(path) as answers:
            logits_of(model, TOKENS)
        return answers[0]

    return added_output(dict(model.named_modules()), [f"{path}.{name}" for name in names], answer)


LLAMA = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "model.layers.0.mlp.down_proj"),
        ("qwen3", "model.layers.0.mlp.down_proj"),
        ("gemma2", ""),  # a norm follows
    ],
)
def test_the_last_matrix_of_a_layer_is_added(name: str, expected: str, make_model: Callable[..., Path]) -> None:
    path, factor = added_in_first_layer(make_model(name), LLAMA)
    assert path == expected
    assert factor == pytest.approx(1.0 if expected else 0.0, rel=1e-4)


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
    path, factor = added_output(dict(model.named_modules()), ["up", "down"], lambda: model(example))
    assert path == "down"
    assert factor == pytest.approx(0.25, rel=1e-4)


def test_an_answer_of_several_parts_has_none() -> None:
    model: Any = Scaled()
    example = mx.random.normal((1, 4, 8), key=mx.random.key(0))
    assert added_output(dict(model.named_modules()), ["down"], lambda: (model(example), 1)) == ("", 0.0)
