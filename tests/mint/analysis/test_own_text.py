"""A model writes the same text however little of it is in memory at once."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.probes.own_text import BASES_OF_TEXT, STREAMED, own_text, text_base, text_bytes
from mint.analysis.probes.probe_file import FULL
from mint.core.errors import MintError
from mint.core.progress import ignore
from mint.model.source import open_source
from mint.quality.sequences import TextSize

SIZE = TextSize(3, 16)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "qwen3_next", "deepseek_v3"])
def test_a_streamed_model_writes_what_the_whole_one_writes(name: str, make_model: Callable[..., Path]) -> None:
    source = open_source(make_model(name))
    whole, streamed = (own_text(source, SIZE, 1, base, ignore) for base in (FULL, STREAMED))
    np.testing.assert_array_equal(whole, streamed)


def test_a_streamed_model_holds_one_layer(llama: Path) -> None:
    source = open_source(llama)
    layers = sum(4 * unit.size for unit in source.units if unit.layer >= 0)
    held: list[int] = []
    own_text(source, SIZE, 2, FULL, lambda _: held.append(mx.get_active_memory()))
    whole = max(held)
    held.clear()
    own_text(source, SIZE, 2, STREAMED, lambda _: held.append(mx.get_active_memory()))
    assert max(held) < whole - 0.9 * layers


def test_less_memory_means_fewer_bits_and_at_last_no_text(llama: Path) -> None:
    source = open_source(llama)
    needs = {base: text_bytes(source, base, SIZE) for base in BASES_OF_TEXT}
    assert [text_base(source, SIZE, needed) for needed in needs.values()][:2] == list(BASES_OF_TEXT)[:2]
    with pytest.raises(MintError, match="Needed: a machine with more"):
        text_base(source, SIZE, min(needs.values()) - 1)
