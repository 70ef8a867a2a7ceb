"""Lazy passes tell what a call uses, and how weights are used."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.probes.replay import Replay
from mint.model.module_tree import make_cache
from mint.model.passes.layer_calls import trace_layer_calls
from mint.model.passes.logits import logits_of
from mint.model.roles import layer_path
from mint.model.source import READ, Source, open_source
from mint.quality.forward import open_wide
from tools.models.families import write_family
from tools.models.vision_families import FAMILIES, write_vision_family

TOKENS = mx.array(np.random.default_rng(0).integers(0, 512, (2, 24)))
# layers that share caches, answer tuples, write in place, hand on a dictionary, or are called twice
ENTANGLED = ("gemma3n", "gemma4", "afm7", "hunyuan", "kimi_k3", "rwkv7", "deepseek_v41", "nanbeige")


def layers_of(source: Source) -> set[str]:
    return {layer_path(unit.path) for unit in source.units if unit.layer >= 0}


def test_logits_are_those_of_generation(tmp_path: Path) -> None:
    """Gemma 3n computes another function without caches than with them."""
    model = open_wide(write_family("gemma3n", tmp_path / "model"))
    caches = make_cache(model)
    steps = [model(TOKENS[:, index : index + 1], cache=caches) for index in range(TOKENS.shape[1])]
    generated, without = mx.concatenate(steps, axis=1), model(TOKENS)
    assert mx.allclose(logits_of(model, TOKENS), generated, atol=1e-3)
    assert not mx.allclose(without, generated, atol=1e-3)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_in_a_text_changes_nothing_before_it_or_the_user_is_told(family: str, tmp_path: Path) -> None:
    """PaliGemma reads a prompt both ways; mlx_vlm's Gemma 3n rotates queries by the length of the text."""
    folder = write_vision_family(family, tmp_path / "model")
    model = open_wide(folder, "mlx_vlm")
    whole, beginning = np.array(logits_of(model, TOKENS % 90)), np.array(logits_of(model, TOKENS[:, :9] % 90))
    is_same = np.abs(whole[:, :9] - beginning).max() < 1e-2 * whole.std()
    notices = open_source(folder, loader="mlx_vlm").notices
    assert is_same != any("as if they came after all keys" in notice for notice in notices)


@pytest.mark.parametrize("family", ENTANGLED)
def test_replaying_any_number_of_calls_changes_nothing(family: str, tmp_path: Path) -> None:
    source = open_source(write_family(family, tmp_path / "model"))
    model = open_wide(source.folder)
    replay = Replay(model, layers_of(source), TOKENS)
    with replay.recording():
        expected = logits_of(model, TOKENS)
        mx.eval(expected)
    for path in (None, *replay.order):
        with replay.before(path):
            assert mx.array_equal(logits_of(model, TOKENS), expected), path


@pytest.mark.parametrize("family", ["gemma3n", "gemma4", "afm7", "rwkv7", "deepseek_v41"])
def test_a_recording_layer_by_layer_holds_no_more_than_later_layers_use(family: str, tmp_path: Path) -> None:
    source = open_source(write_family(family, tmp_path / "model"))
    model = open_wide(source.folder)
    expected = logits_of(model, TOKENS)
    replay = Replay(model, layers_of(source), TOKENS)
    for path in replay.order:
        with replay.up_to(path, record=True):
            logits_of(model, TOKENS)
    with replay.before(None):
        assert mx.array_equal(logits_of(model, TOKENS), expected)


def test_the_calls_of_a_plain_model_use_the_answer_before_them(make_model: Callable[..., Path]) -> None:
    source = open_source(make_model("llama"))
    model = open_wide(source.folder)
    layers = {path: module for path, module in model.named_modules() if path in layers_of(source)}
    calls = trace_layer_calls(model, layers, TOKENS[:1])
    assert [call.path for call in calls] == sorted(layers)
    assert [call.answer_until for call in calls] == [1, 2, 3]
    assert {call.states_until for call in calls} == {-1}


@pytest.mark.parametrize("family", ["llama4_text", "seed_oss"])
def test_an_embedding_that_the_model_reads_itself_is_kept(family: str, tmp_path: Path) -> None:
    source = open_source(write_family(family, tmp_path / "model", tie_word_embeddings=True))
    assert {unit.role for unit in source.units if unit.keep_reason == READ} == {"embedding"}


def test_an_embedding_that_is_only_looked_up_is_not_tied(tmp_path: Path) -> None:
    source = open_source(write_family("talkie", tmp_path / "model"))
    assert [unit.role for unit in source.units if unit.layer < 0] == ["input_embedding"]


def test_a_second_list_of_layers_counts_on(tmp_path: Path) -> None:
    source = open_source(write_family("afm7", tmp_path / "model"))
    layers = {layer_path(unit.path): unit.layer for unit in source.units if unit.layer >= 0}
    assert layers == {f"model.layers.{i}": i for i in (0, 1)} | {f"model.kv_reuse_layers.{i}": 2 + i for i in (0, 1)}
