"""Models that are trained here: the block of a mixture while it trains, and the folders that they become."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.qwen3_moe import Qwen3MoeSparseMoeBlock

from mint.model.source import open_source
from tools.models.train_small import KINDS, LimitedBlock, first_model, main


class RoomyBlock(LimitedBlock):
    """All tokens fit into one expert."""

    slack = 16.0


def test_a_block_with_room_for_all_tokens_computes_what_the_stock_block_does() -> None:
    block = first_model(KINDS["mixture"], 0).layers[0].mlp
    x = mx.random.normal((2, 9, 256), key=mx.random.key(1))
    assert type(block) is Qwen3MoeSparseMoeBlock
    expected = np.array(block(x))
    block.__class__ = RoomyBlock
    np.testing.assert_allclose(np.array(block(x)), expected, atol=1e-5 * np.abs(expected).max())
    assert np.array(RoomyBlock.losses.pop()) >= 0.99  # 1 for even odds


@pytest.mark.parametrize("kind", KINDS)
def test_training_writes_a_model_that_opens(kind: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("one", "two", "three"):
        (texts / f"{name}.txt").write_text(f"{name} sentence after another, all of them different words. " * 200)
    main([str(texts), str(tmp_path / "out"), "--kind", kind, "--minutes", "0.0001", "--sequences", "2"])
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert 1 < report["perplexity"] < 1e5
    source = open_source(tmp_path / "out")
    assert sum(unit.role.startswith("expert") for unit in source.units) == (3 * 8 if kind == "mixture" else 0)
    assert not any(unit.path == "lm_head" for unit in source.units)
