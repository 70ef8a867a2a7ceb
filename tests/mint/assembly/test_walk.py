"""A walk hands out what units really see, the layers before them as they were stored."""

# N rows of inputs, C columns

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.assembly.layer_inputs import ROWS, Stage, Walk
from mint.model.source import Source, open_source
from mint.quality.forward import open_wide
from tests.conftest import FULL_PRECISION

TOKENS = np.arange(2 * 24, dtype=np.int32).reshape(2, 24) % 50
TRANSPOSED = "embed_q"  # prompts are multiplied with its transpose
EVERY_ROW = "unembed_out"  # all heads see every latent of a prompt


def walk(source: Source) -> Walk:
    return Walk(open_wide(source.folder), source.units, TOKENS, TOKENS[:0])


def stages_of(source: Source, **options: object) -> list[Stage]:
    return list(walk(source).stages(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_every_unit_of_every_architecture_has_its_stage_and_its_inputs(
    name: str, make_model: Callable[..., Path]
) -> None:
    source = open_source(make_model(name))
    stages = stages_of(source)
    assert sorted(unit.path for stage in stages for unit in stage.units) == sorted(unit.path for unit in source.units)
    seen = {path: inputs for stage in stages for path, inputs in stage.inputs.items()}
    for unit in source.units:
        looked_up = unit.role in ("position", "layer_embedding") or (unit.role == "embedding" and unit.path not in seen)
        if looked_up or unit.path.endswith(TRANSPOSED):
            assert unit.path not in seen
            continue
        rows, experts = seen[unit.path].rows, seen[unit.path].experts
        assert rows.shape[1] == unit.shape[-1]
        assert np.isfinite(rows).all()
        assert (experts is None) == (unit.slices == 1 or unit.path.endswith(EVERY_ROW))
        if experts is not None:
            assert len(experts) == len(rows)
            assert experts.min() >= 0 and experts.max() < unit.slices
    heads = [unit for unit in source.units if unit.role == "head"] or [
        unit for unit in source.units if unit.role == "embedding"
    ]
    assert all(unit.path in seen for unit in heads)


def test_inputs_are_those_of_the_whole_model(llama: Path) -> None:
    source = open_source(llama)
    stages = stages_of(source)
    model = open_wide(llama)
    embedded = model.model.embed_tokens(mx.array(TOKENS))
    first = model.model.layers[0]
    expected = np.asarray(first.input_layernorm(embedded)).reshape(TOKENS.size, -1)
    for name in ("q_proj", "k_proj", "v_proj"):
        np.testing.assert_array_equal(stages[1].inputs[f"model.layers.0.self_attn.{name}"].rows, expected)
    shared = [stages[1].inputs[f"model.layers.0.self_attn.{name}"].rows for name in ("q_proj", "k_proj")]
    assert shared[0] is shared[1]


def test_blocks_of_sequences_change_no_input(llama: Path) -> None:
    source = open_source(llama)
    tokens = np.random.default_rng(0).integers(0, 50, (5 * ROWS // 48, 24)).astype(np.int32)  # 2.5 blocks
    first = list(Walk(open_wide(source.folder), source.units, tokens, tokens[:0]).stages())[1]
    model = open_wide(llama)
    expected = model.model.layers[0].input_layernorm(model.model.embed_tokens(mx.array(tokens)))
    rows, others = (first.inputs[f"model.layers.0.self_attn.{name}"].rows for name in ("q_proj", "k_proj"))
    np.testing.assert_allclose(rows, np.asarray(expected).reshape(tokens.size, -1), rtol=1e-5, atol=1e-6)
    assert rows is others


def test_no_layer_stays_in_memory(llama: Path) -> None:
    source = open_source(llama)
    layer = sum(4 * unit.size for unit in source.units if unit.layer == 0)
    before = mx.get_active_memory()
    walking = walk(source)
    held = [mx.get_active_memory() - before for _ in walking.stages()]
    assert max(held) < held[1] + layer / 2
    assert held[-1] < held[0] + layer / 2


def test_later_layers_see_what_was_stored_before_them(llama: Path) -> None:
    """With nothing but zeros in the first layer, the second sees the embeddings."""
    source = open_source(llama)
    walking = walk(source)
    model = open_wide(llama)
    expected = model.model.layers[1].input_layernorm(model.model.embed_tokens(mx.array(TOKENS)))
    for index, stage in enumerate(walking.stages()):
        if index == 1:
            for unit in stage.units:
                walking.store(unit.path, mx.zeros(unit.shape))
        if index == 2:
            rows = stage.inputs["model.layers.1.self_attn.q_proj"].rows
            np.testing.assert_array_equal(rows, np.asarray(expected).reshape(rows.shape))
            break


def test_every_token_goes_to_as_many_experts_as_the_model_says(make_model: Callable[..., Path]) -> None:
    source = open_source(make_model("qwen3_moe"))
    experts_per_token = source.config["num_experts_per_tok"]
    stacks = [(unit, stage.inputs[unit.path]) for stage in stages_of(source) for unit in stage.units if unit.slices > 1]
    assert {unit.role for unit, _ in stacks} == {"expert_gate", "expert_up", "expert_down"}
    for unit, seen in stacks:
        assert sum(len(seen.of(index)) for index in range(unit.slices)) == TOKENS.size * experts_per_token
        if unit.role == "expert_down":  # the output of an expert goes to that expert alone
            assert seen.experts is not None and seen.experts.shape == (TOKENS.size * experts_per_token, 1)


def test_what_is_finished_is_passed_without_a_look(llama: Path) -> None:
    source = open_source(llama)
    finished = {unit.path for unit in source.units if unit.layer == 0}
    stages = stages_of(source, finished=finished)
    whole = stages_of(source)
    assert not stages[1].inputs
    for path, seen in whole[2].inputs.items():
        np.testing.assert_array_equal(stages[2].inputs[path].rows, seen.rows)


def test_layers_that_answer_each_other_out_of_turn_are_seen_through_the_whole_model(llama: Path) -> None:
    """A model that calls a layer twice cannot be walked layer by layer; its inputs are those of a whole pass."""
    source = open_source(llama)
    model = open_wide(llama)
    inner = model.model
    inner.layers = [*inner.layers, inner.layers[0]]
    stages = list(Walk(model, source.units, TOKENS, TOKENS[:0]).stages())
    rows = stages[1].inputs["model.layers.0.self_attn.q_proj"].rows
    assert len(rows) == 2 * TOKENS.size
    assert sorted(unit.path for stage in stages for unit in stage.units) == sorted(unit.path for unit in source.units)


def test_a_unit_learns_what_the_output_of_its_layer_misses(llama: Path) -> None:
    source = open_source(llama)
    walked = Walk(open_wide(llama), source.units, TOKENS, TOKENS[:0], open_wide(llama))
    table = open_wide(llama).model.embed_tokens["weight"]
    stages = walked.stages()
    next(stages)
    walked.store("model.embed_tokens", table * 1.5)
    model, changed = open_wide(llama), open_wide(llama)
    changed.model.embed_tokens["weight"] = table * 1.5
    expected, states = (each.model.embed_tokens(mx.array(TOKENS)) for each in (model, changed))
    for index, stage in zip(range(len(model.layers)), stages, strict=False):
        expected, states = (
            each.layers[index](hidden, "causal", None) for each, hidden in ((model, expected), (changed, states))
        )
        missing = {path: inputs.missing for path, inputs in stage.inputs.items() if inputs.missing is not None}
        (path,) = missing
        assert path == f"model.layers.{index}.mlp.down_proj"
        wanted = np.asarray(expected - states).reshape(TOKENS.size, -1)
        np.testing.assert_allclose(missing[path].outputs, wanted, rtol=1e-4, atol=1e-5)
        assert missing[path].sizes is None


def test_nothing_is_missing_without_the_original(llama: Path) -> None:
    assert all(inputs.missing is None for stage in stages_of(open_source(llama)) for inputs in stage.inputs.values())


def test_under_a_norm_the_sizes_of_outputs_are_known(make_model: Callable[..., Path]) -> None:
    gemma = make_model("gemma2")
    source = open_source(gemma)
    walked = Walk(open_wide(gemma), source.units, TOKENS, TOKENS[:0], open_wide(gemma))
    learning = [
        (path, inputs)
        for stage in walked.stages()
        for path, inputs in stage.inputs.items()
        if inputs.missing is not None
    ]
    assert [path for path, _ in learning] == [unit.path for unit in source.units if unit.path.endswith("mlp.down_proj")]
    model = dict(open_wide(gemma).named_modules())
    for path, inputs in learning:
        assert inputs.missing
        assert inputs.missing.sizes is not None
        outputs = inputs.rows @ np.array(model[path]["weight"]).T
        sizes = np.sqrt(np.square(outputs).mean(axis=1, keepdims=True))
        np.testing.assert_allclose(inputs.missing.sizes, sizes, rtol=1e-4)
        assert np.abs(inputs.missing.outputs).max() == 0  # nothing was changed
