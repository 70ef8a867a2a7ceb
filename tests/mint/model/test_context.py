"""The memory of a context, foreseen from shapes, is the memory that a real run takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models import llama, mixtral
from mlx_lm.models.cache import make_prompt_cache

from mint.core.errors import MintError
from mint.model.config import context_limit
from mint.model.kv_memory import KV_BITS, STEP, ContextMemory, find_points
from mint.model.kv_trace import Passes, active_experts, context_memory
from mint.model.module_tree import build_tree
from mint.model.source import Source, open_source
from mint.plan.device_fit import fit_rows
from mint.plan.recipe import Room
from mint.targets.devices import device
from tests.conftest import FULL_PRECISION
from tests.worlds.zoo import ARCHITECTURES, write_model

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    folder = tmp_path_factory.mktemp("zoo")
    opened: dict[str, Source] = {}

    def source(name: str) -> Source:
        if name not in opened:
            opened[name] = open_source(write_model(name, folder / name, dtype="F32"))
        return opened[name]

    return source


def real_caches(source: Source, tokens: int, kv_bits: int | None = None) -> list[Any]:
    """The caches after mlx_lm's own steps of generating, evaluated."""
    model = build_tree(source.folder, source.config, source.shards, source.dtype).model
    caches: list[Any] = make_prompt_cache(model)
    prompt = mx.arange(tokens)[None] % 500
    for part in (prompt[:, :-1], prompt[:, -1:]):
        model(part, cache=caches)
        maybe_quantize_kv_cache(caches, quantized_kv_start=0, kv_group_size=64, kv_bits=kv_bits)
        mx.eval([cache.state for cache in caches])
    return caches


def real_bytes(source: Source, tokens: int, kv_bits: int | None = None) -> int:
    states = dict(tree_flatten([cache.state for cache in real_caches(source, tokens, kv_bits)]))
    return sum(array.nbytes for array in states.values() if isinstance(array, mx.array))


def with_config(monkeypatch: pytest.MonkeyPatch, name: str, **more: Any) -> None:
    """Change the zoo's config of an architecture for this test."""
    recipe = ARCHITECTURES[name]
    config = recipe.config | more
    if "text_config" in config:
        config["text_config"] = config["text_config"] | more
    monkeypatch.setitem(ARCHITECTURES, name, replace(recipe, config=config))


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_bytes_foreseen_are_the_bytes_of_a_real_run(name: str, zoo: Callable[[str], Source]) -> None:
    source = zoo(name)
    memory = context_memory(source)
    for tokens in (40,) if name == "gpt2" else (STEP, 2 * STEP):  # gpt2 of the zoo has 64 positions
        assert memory.nbytes(tokens) == real_bytes(source, tokens)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "falcon_h1", "lfm2", "qwen3_5"])
def test_caches_of_a_bfloat16_model_are_foreseen_in_bfloat16(name: str, make_model: MakeModel) -> None:
    source = open_source(make_model(name, dtype="BF16"))
    memory = context_memory(source)
    assert memory.nbytes(STEP) == real_bytes(source, STEP)
    assert memory.nbytes(STEP) < context_memory(open_source(source.folder, dtype="float32")).nbytes(STEP)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "llama4", "qwen3_next"])
def test_between_two_steps_bytes_are_rounded_up(name: str, zoo: Callable[[str], Source]) -> None:
    source = zoo(name)
    memory = context_memory(source)
    for tokens in (2, 129, 300, 511):
        assert memory.nbytes(tokens) == memory.nbytes(-(-tokens // STEP) * STEP)
        assert real_bytes(source, tokens) <= memory.nbytes(tokens)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gemma3_text", {"sliding_window": 700}),
        ("gpt_oss", {"sliding_window": 512}),
        ("llama4", {"attention_chunk_size": 512}),
    ],
)
def test_a_window_grows_until_it_is_full(
    name: str, more: dict[str, Any], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch, name, **more)
    source = open_source(make_model(name, dtype="F32"))
    memory = context_memory(source)
    for tokens in (STEP, 2 * STEP, 3 * STEP, 4 * STEP):
        assert memory.nbytes(tokens) == real_bytes(source, tokens)
    passes = Passes(build_tree(source.folder, source.config, source.shards).model)
    for tokens in (*range(STEP, 20 * STEP, STEP), 1 << 15, (1 << 19) + STEP):
        assert memory.nbytes(tokens) == sum(passes.measure(tokens)[1::2])


@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_a_quantized_cache_has_the_bytes_that_mlx_lm_gives_it(kv_bits: int, zoo: Callable[[str], Source]) -> None:
    source = zoo("qwen3")
    memory = context_memory(source)
    for tokens in (40, STEP, 2 * STEP, 3 * STEP):
        assert memory.nbytes(tokens, kv_bits) == real_bytes(source, tokens, kv_bits)


@pytest.mark.parametrize("name", ["qwen3_next", "llama4", "falcon_h1", "lfm2"])
def test_caches_that_mlx_lm_leaves_alone_count_as_they_are(
    name: str, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"hidden_size": 256, "block_dim": 256} if name == "lfm2" else {"head_dim": 64}
    with_config(monkeypatch, name, **more)
    source = open_source(make_model(name, dtype="F32"))
    memory = context_memory(source)
    for kv_bits in (4, 8):
        assert memory.nbytes(2 * STEP, kv_bits) == real_bytes(source, 2 * STEP, kv_bits)


def test_a_bfloat16_cache_has_bfloat16_scales(make_model: MakeModel) -> None:
    source = open_source(make_model("qwen3", dtype="BF16"))
    assert context_memory(source).nbytes(STEP, 4) == real_bytes(source, STEP, 4)


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("gemma3_text", {}, "RotatingKVCache"),
        ("gpt_oss", {}, "RotatingKVCache"),
        ("llama", {}, "divisible"),  # heads of 32
        ("deepseek_v3", {"qk_rope_head_dim": 64}, "swapaxes"),  # latent attention slices what is quantized
    ],
)
def test_a_cache_that_cannot_be_quantized_says_why(
    name: str, more: dict[str, Any], why: str, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch, name, **more)
    source = open_source(make_model(name, dtype="F32"))
    with pytest.raises(MintError, match=rf"kv_bits 8.*{why}.*needed.*Leave kv_bits out"):
        context_memory(source).nbytes(STEP, 8)
    with pytest.raises(Exception, match=why):
        real_caches(source, STEP, 8)


def test_impossible_questions_are_refused(zoo: Callable[[str], Source]) -> None:
    memory = context_memory(zoo("qwen3"))
    with pytest.raises(MintError, match="0 tokens; needed: 1 or more"):
        memory.nbytes(0)
    with pytest.raises(MintError, match="kv_bits 7; needed: one of 2, 3, 4, 5, 6, 8"):
        memory.nbytes(1, 7)


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "mamba"])
def test_the_record_survives_a_file(name: str, zoo: Callable[[str], Source]) -> None:
    memory = context_memory(zoo(name))
    assert ContextMemory.from_fields(msgpack.unpackb(msgpack.packb(memory.to_fields()))) == memory


def write_sparse_llama(folder: Path, layers: int = 80) -> Path:
    """Llama 3.1 70B with a hole for weights."""
    hidden, inner, keys, vocabulary = 8192, 28672, 1024, 128256
    config = {
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    layer = {
        "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner], "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
    }  # fmt: skip
    shapes = {f"model.layers.{index}.{name}": shape for index in range(layers) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens": [vocabulary, hidden], "lm_head": [vocabulary, hidden], "model.norm": [hidden]}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * mx.zeros(shape).size
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_nothing_is_read_of_a_model_of_70_billion_weights(tmp_path: Path) -> None:
    source = open_source(write_sparse_llama(tmp_path / "model"))
    mx.enable_compile()  # no compiler is called where nothing is evaluated
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), perf_counter()
    memory = context_memory(source)
    assert mx.get_peak_memory() - before < 1 << 20
    assert perf_counter() - start < 10
    assert memory.nbytes(1 << 17) == (1 << 17) * 80 * 2 * 1024 * 2  # 40 GiB


@pytest.mark.parametrize("name", ["mamba", "jamba", "qwen3_next"])
def test_a_recurrent_layer_is_not_walked_through_a_million_tokens(name: str, zoo: Callable[[str], Source]) -> None:
    start = perf_counter()
    assert context_memory(zoo(name)).points[-1][0] == 1 << 20
    assert perf_counter() - start < 5


def test_a_model_that_looks_at_values_is_refused(zoo: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.MLP, "__call__", lambda self, x: x if x.sum().item() else -x)
    with pytest.raises(MintError, match=r"llama model does not run on shapes alone.*needed.*aside by hand"):
        context_memory(zoo("llama"))


def windows_bytes(windows: list[int]) -> Callable[[int], tuple[int, int, int, int]]:
    return lambda tokens: (tokens, sum(min(tokens, window) for window in windows), 3 * tokens, 6 * tokens)


@given(st.lists(st.integers(1, 1 << 21), max_size=4), st.lists(st.integers(1, 1 << 12), min_size=1))
@example([262_142], [1_023])  # a kink of two bytes
def test_every_window_is_found_whatever_its_size(windows: list[int], steps: list[int]) -> None:
    measure = windows_bytes(windows)
    memory = ContextMemory(find_points(measure))
    near = [window // STEP + side for window in windows for side in (0, 1)]
    for step in (*steps, *near):
        tokens = max(1, min(step, 1 << 12)) * STEP
        assert memory.nbytes(tokens) == sum(measure(tokens)[1::2])


def test_a_straight_line_takes_four_passes() -> None:
    calls: list[int] = []

    def measure(tokens: int) -> tuple[int, int, int, int]:
        calls.append(tokens)
        return windows_bytes([])(tokens)

    find_points(measure)
    assert len(calls) == 4


def test_where_tracing_ends_bytes_grow_as_before() -> None:
    def measure(tokens: int) -> tuple[int, int, int, int]:
        if tokens > 5000:
            raise ValueError("no such position")
        return windows_bytes([1000])(tokens)

    memory = ContextMemory(find_points(measure))
    assert memory.points[-1][0] == 4096
    assert memory.nbytes(1 << 20) == sum(windows_bytes([1000])(1 << 20)[1::2])


def test_a_staircase_without_end_is_refused() -> None:
    with pytest.raises(MintError, match="500 passes"):
        find_points(lambda tokens: (tokens, tokens**2, 0, 0))


ROUTED = [
    name for name in FULL_PRECISION if any("experts" in key for key in str(ARCHITECTURES[name].config).split("'"))
]


@pytest.mark.parametrize("name", ROUTED)
def test_the_share_of_experts_is_that_of_the_config(name: str, zoo: Callable[[str], Source]) -> None:
    source = zoo(name)
    config = source.config.get("text_config", source.config)
    experts = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)
    shares = active_experts(source)
    assert shares.keys() == {unit.path for unit in source.units if len(unit.shape) == 3}
    for path, share in shares.items():
        latent = path.endswith(("embed_q", "unembed_out"))
        assert share == (1 if latent else config["num_experts_per_tok"] / experts)


def test_a_model_without_stacks_has_no_shares(zoo: Callable[[str], Source]) -> None:
    assert active_experts(zoo("llama")) == {}


def test_experts_that_a_model_goes_around_are_not_guessed(
    zoo: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixtral.MixtralSparseMoeBlock, "__call__", lambda self, x: x)
    with pytest.raises(MintError, match=r"never calls .*gate_proj, a stack of 4 matrices; needed"):
        active_experts(zoo("mixtral"))


def test_the_record_is_read_without_mlx_lm() -> None:
    code = "import sys, mint.model.kv_memory; print([p for p in ('mlx_lm', 'numba') if p in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 9, "rope_scaling": {"factor": 4, "original_max_position_embeddings": 8}}, 32),
        ({}, None),
    ],
)
def test_a_config_limits_the_context(config: dict[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def test_no_context_is_longer_than_that_of_the_model(zoo: Callable[[str], Source]) -> None:
    source = zoo("llama")
    limit = context_limit(source.config)
    assert limit
    rows = fit_rows(source, device("m2-8"), Room())
    assert {row["longest_context"] for row in rows} == {limit}
