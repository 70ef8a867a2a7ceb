"""Every animal of the zoo is one that mlx_lm opens, under the names that its checkpoints have on the hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors import safe_open

from tests.worlds.zoo import ARCHITECTURES, write_model

VOCABULARY = 512
TOKENS = 5

NAMES = [
    ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", [16]),
    ("qwen3", "lm_head.weight", "BF16", [512, 128]),
    ("gemma3_text", "model.layers.0.pre_feedforward_layernorm.weight", "BF16", [96]),
    ("gemma3_text", "model.layers.0.mlp.down_proj.weight", "BF16", [96, 160]),
    ("phi3", "model.layers.0.self_attn.qkv_proj.weight", "BF16", [256, 128]),
    ("phi3", "model.layers.0.mlp.gate_up_proj.weight", "BF16", [512, 128]),
    ("gpt2", "wpe.weight", "BF16", [64, 128]),
    ("gpt2", "h.0.attn.c_attn.weight", "BF16", [128, 384]),
    ("gpt2", "h.0.attn.bias", "BF16", [1, 1, 64, 64]),
    ("mamba", "backbone.layers.0.mixer.A_log", "BF16", [256, 16]),
    ("mamba2", "backbone.layers.0.mixer.conv1d.weight", "BF16", [320, 1, 4]),
    ("lfm2", "model.layers.0.conv.conv.weight", "BF16", [128, 1, 3]),
    ("falcon_h1", "model.layers.0.mamba.conv1d.weight", "BF16", [192, 1, 4]),
    ("jamba", "model.layers.1.feed_forward.experts.3.down_proj.weight", "BF16", [128, 256]),
    ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.weight", "BF16", [128, 128]),
    ("qwen3_moe", "model.layers.1.mlp.gate_proj.weight", "BF16", [256, 128]),
    ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w2.weight", "BF16", [128, 256]),
    ("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight", "BF16", [4, 512, 128]),
    ("glm4_moe", "model.layers.2.eh_proj.weight", "BF16", [128, 256]),
    ("llama4", "language_model.model.layers.1.feed_forward.experts.gate_up_proj", "BF16", [4, 128, 256]),
    ("llama4", "language_model.model.layers.1.feed_forward.experts.down_proj", "BF16", [4, 128, 128]),
    ("llama4", "multi_modal_projector.linear_1.weight", "BF16", [128, 64]),
    ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj.weight", "BF16", [512, 128]),
    ("deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias", "F32", [4]),
    ("deepseek_v3", "model.layers.61.mlp.experts.0.up_proj.weight", "BF16", [128, 128]),
    ("deepseek_v3_fp8", "model.layers.1.mlp.experts.0.up_proj.weight", "F8_E4M3", [128, 128]),
    ("deepseek_v3_fp8", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "F32", [2, 1]),
    ("minimax", "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale_inv", "F32", [1, 1]),
    ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_bias", "BF16", [4, 512]),
    ("gpt_oss_mxfp4", "model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", [4, 512, 4, 16]),
    ("gpt_oss_mxfp4", "model.layers.0.mlp.experts.down_proj_scales", "U8", [4, 128, 8]),
    ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz.weight", "BF16", [384, 128]),
    ("qwen3_next", "mtp.layers.0.mlp.experts.0.down_proj.weight", "BF16", [128, 128]),
    ("qwen3_5", "model.language_model.layers.0.linear_attn.A_log", "F32", [4]),
    ("qwen3_5_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", "BF16", [4, 256, 128]),
    ("qwen3_5_moe", "lm_head.weight", "BF16", [512, 128]),
]


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """Without a compiler's seconds for each little fused function."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def opened(folder: Path) -> Module:
    """The model with strictly all its weights, in float32: MLX's stacks multiply in nothing else on a CPU."""
    model: Module = load_model(folder, lazy=False)[0]
    model.set_dtype(mx.float32)
    return model


def logits(folder: Path) -> mx.array:
    answer: mx.array = opened(folder)(mx.arange(2, 2 + TOKENS)[None])
    return answer


def headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of every tensor in the folder by its name."""
    entries = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors file does not iterate
                part = tensors.get_slice(name)
                entries[name] = (part.get_dtype(), part.get_shape())
    return entries


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_opens_and_speaks(name: str, tmp_path: Path) -> None:
    answer = logits(write_model(name, tmp_path))
    assert answer.shape == (1, TOKENS, VOCABULARY)
    assert mx.isfinite(answer).all()
    assert mx.std(answer) > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shards_do_not_change_the_model(name: str, tmp_path: Path) -> None:
    whole = write_model(name, tmp_path / "whole")
    dealt = write_model(name, tmp_path / "dealt", shards=3)
    assert len(list(dealt.glob("model-0000?-of-00003.safetensors"))) == 3
    assert headers(dealt) == headers(whole)
    assert mx.array_equal(logits(dealt), logits(whole))


@pytest.mark.parametrize("name", [name for name, recipe in ARCHITECTURES.items() if len(recipe.tied) == 2])
def test_the_other_tying_opens_too(name: str, tmp_path: Path) -> None:
    folder = write_model(name, tmp_path, tied=not ARCHITECTURES[name].tied[0])
    assert mx.isfinite(logits(folder)).all()


@pytest.mark.parametrize(("name", "tensor", "dtype", "shape"), NAMES)
def test_tensors_are_named_and_shaped_as_on_the_hub(
    name: str, tensor: str, dtype: str, shape: list[int], tmp_path: Path
) -> None:
    assert headers(write_model(name, tmp_path))[tensor] == (dtype, shape)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_folder_reaches_four_megabytes(name: str, tmp_path: Path) -> None:
    write_model(name, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4_000_000


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "expected"),
    [("BF16", "bfloat16", mx.bfloat16), ("F16", "float16", mx.float16), ("F32", "float32", mx.float32)],
)
def test_the_dtype_is_that_of_the_config_and_of_the_weights(
    dtype: str, torch_dtype: str, expected: mx.Dtype, tmp_path: Path
) -> None:
    write_model("mixtral", tmp_path, dtype=dtype)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == torch_dtype
    model, _ = load_model(tmp_path)
    assert {array.dtype for array in dict(tree_flatten(model.parameters())).values()} == {expected}


def test_fp8_weights_are_the_bfloat16_ones_but_for_their_rounding(tmp_path: Path) -> None:
    rounded = dict(tree_flatten(opened(write_model("deepseek_v3_fp8", tmp_path / "fp8")).parameters()))
    exact = dict(tree_flatten(opened(write_model("deepseek_v3", tmp_path / "bf16")).parameters()))
    assert rounded.keys() == exact.keys()
    for name, array in exact.items():
        # Three bits of mantissa err by 1/16 at most; a rounded bfloat16 and FP8's subnormals take the rest.
        error = mx.linalg.norm((rounded[name] - array).flatten()) / mx.linalg.norm(array.flatten())
        assert error < 1 / 16, name


def test_a_tied_head_that_a_checkpoint_repeats_is_its_embedding(tmp_path: Path) -> None:
    write_model("qwen3", tmp_path)
    weights = mx.load(str(tmp_path / "model.safetensors"))
    assert isinstance(weights, dict)
    assert mx.array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_experts_of_one_stack_lie_in_different_files(tmp_path: Path) -> None:
    write_model("qwen3_moe", tmp_path, shards=3)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({files[f"model.layers.0.mlp.experts.{e}.up_proj.weight"] for e in range(8)}) == 3


def test_the_index_is_written_for_shards_or_when_asked(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    assert not (write_model("llama", tmp_path / "one") / index).exists()
    assert not (write_model("llama", tmp_path / "two", shards=2, index=False) / index).exists()
    folder = write_model("llama", tmp_path / "indexed", index=True)
    assert json.loads((folder / index).read_text())["weight_map"].keys() == headers(folder).keys()


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = (
        (write_model("llama", tmp_path / run, seed=seed) / "model.safetensors").read_bytes()
        for run, seed in [("first", 7), ("again", 7), ("other", 8)]
    )
    assert first == again
    assert first != other


def test_a_tying_that_an_architecture_never_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gpt2 is never untied"):
        write_model("gpt2", tmp_path, tied=False)


def test_the_tokenizer_brings_text_back_and_applies_its_chat_template(tmp_path: Path) -> None:
    _, tokenizer = mlx_lm.load(str(write_model("llama", tmp_path, tokenizer=True)))[:2]
    text = "What a byte buys, naïvely: 3 × 7?"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert max(tokens) < VOCABULARY
    question = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert chat == f"<s>user\n{text}</s>\n<s>assistant\n"
