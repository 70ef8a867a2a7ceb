"""Probes around a base: the function of a packed model, the choice of the base, and no other change."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mint.analysis.analyze import analyze
from mint.analysis.probes.packed_base import (
    AUTO,
    BASES,
    base_format,
    chosen_base,
    needed_bytes,
    open_base,
)
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import FULL, read_probes
from mint.analysis.probes.prober import ProbeJob, Probing, TextJob, coarse_format
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.core.memory import memory_bytes
from mint.formats.units import Unit
from mint.model.passes.logits import logits_of
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.quality.forward import open_wide
from mint.run.executor import in_process, memory_for_models
from tests.worlds.zoo import write_model

# dense, tied and not, latent attention with experts, states, parallel blocks, positions
PACKED = ("llama", "gemma3_text", "qwen3_moe", "deepseek_v3", "mamba2", "gpt2")
TOKENS = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
FEW = Probing(sequences=2, length=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(write_model("llama", tmp_path_factory.mktemp("model") / "llama", tokenizer=True))


def _stored(weight: mx.array, unit: Unit, base: str) -> mx.array:
    """The float32 weight as MLX itself stores it in a base."""
    format = base_format(unit, base)
    if format is None:
        return weight.astype(mx.float32)
    packed, scales, biases = (
        part.astype(mx.float32) if part.dtype != mx.uint32 else part
        for part in mx.quantize(weight, **format.parameters())
    )
    dequantize: Any = mx.dequantize
    stored: mx.array = dequantize(packed, scales, biases, **format.parameters(), dtype=mx.float32)
    return stored


def _dequantized(source: Source, base: str) -> Any:
    """The model in float32 with every unit's weight as the base stores it."""
    model = open_wide(source.folder)
    modules = dict(model.named_modules())
    for unit, stored in in_process(source, lambda unit, weight: _stored(weight, unit, base), source.units):
        modules[unit.path]["weight"] = stored
    return model


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_is_the_float32_function_of_its_packed_weights(name: str, tmp_path: Path) -> None:
    source = open_source(write_model(name, tmp_path / name))
    for base in ("8", "4"):
        model = open_base(source, base)
        expected = logits_of(_dequantized(source, base), TOKENS)
        assert mx.allclose(logits_of(model, TOKENS), expected, rtol=1e-4, atol=1e-5)
        parameters = set(dict(tree_flatten(model.parameters())))
        packed = {f"{unit.path}.weight" for unit in source.units if base_format(unit, base)}
        assert packed
        assert not packed & parameters


def test_a_probe_around_a_base_is_the_divergence_from_the_base(source: Source) -> None:
    prober = ProbeJob(TextJob(source, Probing("random", 2, 8, base="4"), ()))
    tokens = mx.array(np.random.default_rng(0).integers(0, source.units[0].shape[0], (2, 8), dtype=np.int32))
    units = [unit for unit in source.units if unit.role in ("embedding", "head", "v", "down")]
    for unit, result in in_process(source, prober, units):
        model = _dequantized(source, "4")
        expected = _log_probabilities(logits_of(model, tokens))
        format = coarse_format(unit)
        assert format
        weight = source.arrays()[f"{unit.path}.weight"]
        dequantize: Any = mx.dequantize
        coarse = dequantize(*mx.quantize(weight, **format.parameters()), **format.parameters(), dtype=mx.float32)
        dict(model.named_modules())[unit.path]["weight"] = coarse
        other = _log_probabilities(logits_of(model, tokens))
        kls = (np.exp(expected) * (expected - other)).sum(axis=-1).mean(axis=-1)
        assert result.kls == pytest.approx(kls.tolist(), rel=2e-3, abs=1e-6)


def _log_probabilities(logits: mx.array) -> Any:
    wide = np.asarray(logits.astype(mx.float32), np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_the_base_is_the_first_that_fits_the_memory(source: Source) -> None:
    bases = (FULL, *BASES)
    needs = [needed_bytes(source, base, 16) for base in bases]
    assert all(more > less for more, less in pairwise(needs))
    assert needed_bytes(source, "8", 1600) > needed_bytes(source, "8", 16)
    for base, needed in zip(bases, needs, strict=True):
        assert chosen_base(source, AUTO, 16, needed) == base
    with pytest.raises(MintError, match=r"around 4 bits, this machine has .*base 4 tries all the same"):
        chosen_base(source, AUTO, 16, needs[-1] - 1)
    assert memory_for_models() > needs[0]


def test_a_container_bounds_the_memory(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = memory_bytes([limit])
    assert machine >= 2**28
    limit.write_text("max\n")
    assert memory_bytes([limit]) == machine
    limit.write_text("1048576\n")
    assert memory_bytes([limit]) == 1048576


def test_probes_say_their_base_and_are_kept_by_it(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis = analyze(source, tmp_path / "a.mint")
    path = tmp_path / "a.mint.probe"
    around = probe(source, analysis, path, probing=replace(FEW, base="8"))
    assert around.base == read_probes(path).base == "8"
    assert probe(source, analysis, path, probing=FEW) == around  # `auto` takes the probes that are there
    with pytest.raises(MintError, match=r"holds other probes .*around 8 bits"):
        probe(source, analysis, path, probing=replace(FEW, base=FULL))
    with pytest.raises(MintError, match="not a base"):
        probe(source, analysis, path, probing=replace(FEW, base="9"))
    assert {choice.alpha_from for choice in allocate(analysis, "0.4x", probed=around).choices} == {
        "probed around 8 bits"
    }
    again = tmp_path / "again.probe"
    probe(source, analysis, again, probing=replace(FEW, base="8"))
    assert again.read_bytes() == path.read_bytes()
    arguments = ["probe", str(source.folder), "--analysis", str(tmp_path / "b.mint"), "--base", "6", "--json"]
    assert run_command([*arguments, "--sequences", "2", "--length", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == "6"
