"""Arrays that leave MLX are those that were read: an error of a read is never lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mint.kernels.storage import numpy_view, raw, raw_bytes


@pytest.mark.parametrize("take", [numpy_view, raw, raw_bytes])
def test_a_read_that_fails_meanwhile_is_raised_by_the_next_array_that_is_taken(
    take: Callable[[mx.array], Any], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), {"weight": mx.random.normal((1024, 1024))})
    loaded: Any = mx.load(str(file))
    following = loaded["weight"]
    with file.open("r+b") as shard:
        shard.truncate(1 << 20)
    with pytest.raises(RuntimeError, match="Unable to read"):
        mx.async_eval(following)
        for _ in range(10_000):  # until the read has failed, in a thread of MLX
            take(mx.ones((8, 8)) + 1)
