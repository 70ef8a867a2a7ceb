"""A large weight is decoded tile by tile, to the values that it has at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mint.model.source import Source, open_source
from mint.model.storages import storage
from mint.run.executor import in_process
from tests.mint.model.storages.twins import check_same
from tests.worlds.encodings import Encoding, awq, bnb_4bit, fp8, gptq, int8, nvfp4, packed, write_encoded

MATRICES = r"proj\.weight$"


@pytest.mark.parametrize(
    ("encoding", "config"),
    [
        (fp8(), {}),
        (fp8(kind="block32", scale_dtype="U8"), {"quantization_config": {"weight_block_size": [32, 32]}}),
        (fp8(kind="row"), {}),
        (fp8(kind="scalar"), {}),
        (int8(zeros=True), {}),
        (nvfp4(), {}),
        (packed(group=0, zeros=True), {}),
        (awq(), {}),
        (gptq(act_order=True), {}),
        (bnb_4bit(double=True), {}),
    ],
)
def test_tiles_change_no_value(
    encoding: Encoding, config: dict[str, Any], make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LARGE", 0)
    monkeypatch.setattr(storage, "BLOCK", 1500)
    folder = make_model("llama")
    check_same(folder, write_encoded(folder, MATRICES, encoding, config))


@pytest.mark.parametrize(
    ("shape", "scales", "block", "sizes"),
    [
        ((256, 512), (), (), (0, 0)),
        ((256, 512), (1,), (), (0, 0)),
        ((256, 512), (256,), (), (1, 0)),
        ((256, 512), (256, 1), (), (1, 0)),
        ((256, 512), (1, 512), (), (0, 1)),
        ((8, 256, 512), (8,), (), (1, 0, 0)),
        ((8, 256, 512), (8, 2, 4), (128, 128), (1, 128, 128)),
        ((576, 7168), (5, 56), (), (128, 128)),
        ((192, 128), (2, 1), (), (128, 0)),
        ((96, 64), (3, 2), (), (32, 32)),
        ((96, 64), (2, 4), (), (48, 16)),
        ((100, 64), (3, 1), (48, 48), (48, 0)),
        ((100, 64), (7, 1), (), None),
        ((100,), (100, 1), (), None),
    ],
)
def test_the_shape_of_scales_tells_their_blocks(
    shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, ...], sizes: tuple[int, ...] | None
) -> None:
    assert storage.block_sizes(shape, scales, storage.Settings(block=block)) == sizes


def test_an_encoded_model_streams_in_hardly_more_memory_than_its_plain_twin(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next weight is read ahead as codes; plain weights are two at a time."""
    monkeypatch.setattr(storage, "LARGE", 0)
    monkeypatch.setattr(storage, "BLOCK", 1500)
    folder = make_model("llama", tied=False)
    twin = write_encoded(folder, MATRICES, fp8())
    plain, encoded = _peak_bytes(open_source(twin)), _peak_bytes(open_source(folder))
    assert encoded < 1.6 * plain  # two blocks of scales are a large share of so small a weight


def _peak_bytes(source: Source) -> int:
    """Peak memory of MLX while the matrices of the layers stream, and nothing is done with them."""
    units = [unit for unit in source.units if unit.layer is not None and unit.path.endswith("proj")]
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in in_process(source, lambda unit, weight: mx.synchronize(), units):
        pass
    return mx.get_peak_memory() - before
