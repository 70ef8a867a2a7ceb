"""GGUF files open as the checkpoints that they were converted from."""

import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from mlx.utils import tree_unflatten

from mint.analysis.analysis import read_analysis
from mint.core.errors import MintError
from mint.model.gguf.metadata import read_gguf
from mint.model.locate import locate, model_name
from mint.model.module_tree import build_tree, read_tokenizer
from mint.model.source import Source, open_source
from mint.pipeline import quantize
from tests.worlds.encodings import Array
from tests.worlds.gguf_world import IN_BF16, SCALE_BYTES, WHOLE, blocks_of, random_blocks, split_gguf, write_gguf
from tests.worlds.zoo import write_model
from tools.models.families import write_family

Make = Callable[..., Path]
ZOO = ("llama", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
PLAIN: dict[str, Any] = {"num_hidden_layers": 1, "sliding_window": None, "layer_types": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 6.0, "attention_multiplier": 0.125, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.25},
    "gemma": {"max_position_embeddings": 512},
    "qwen2_moe": {"max_position_embeddings": 512},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True, "decoder_sparse_step": 1},
    "smollm3": {"sliding_window": None},
}  # fmt: skip
AFFINE = {"Q4_0": "4/32", "Q4_1": "4/32", "Q5_0": "5/32", "Q5_1": "5/32", "Q8_0": "8/32"}


def _logits(source: Source) -> mx.array:
    tree = build_tree(source.folder, source.config, source.shards, "float32")
    tree.model.update(tree_unflatten(list(tree.arrays.items())))
    logits: mx.array = tree.model(mx.arange(2, 26)[None])
    return logits


@pytest.mark.parametrize("name", [*ZOO, *FAMILIES])
def test_a_file_opens_as_the_checkpoint_it_was_made_of(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    write_model(name, folder) if name in ZOO else write_family(name, folder, **FAMILIES[name])
    write_gguf(folder, tmp_path / "tiny.gguf")
    expected, source = (open_source(path, dtype="float32") for path in (folder, tmp_path / "tiny.gguf"))
    assert [(unit.path, unit.role, unit.shape) for unit in source.units] == [
        (unit.path, unit.role, unit.shape) for unit in expected.units
    ]
    assert not source.dropped
    arrays = expected.arrays()
    for path, array in source.arrays().items():
        assert mx.array_equal(array, arrays[path]), path
    assert mx.allclose(_logits(source), _logits(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*(Type[name] for name in AFFINE), Type.TQ1_0, Type.MXFP4, Type.F16, *SCALE_BYTES])
def test_every_block_type_is_decoded_as_the_reference_does(kind: Type, tmp_path: Path) -> None:
    def encode(name: str, values: Array) -> tuple[Type, Array]:
        if "down" not in name:
            return IN_BF16(name, values)
        return (kind, random_blocks(kind, values.shape)) if kind in SCALE_BYTES else blocks_of(kind)(name, values)

    folder = write_family("llama", tmp_path / "hf", hidden_size=256, intermediate_size=512, **PLAIN)
    values = write_gguf(folder, tmp_path / "tiny.gguf", encode)
    name = "model.layers.0.mlp.down_proj.weight"
    found = np.array(open_source(tmp_path / "tiny.gguf").arrays()[name])
    assert found.dtype == np.float16 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, values[name].astype(np.float16))


def test_a_mix_of_k_types_is_quantized_and_verified(tmp_path: Path) -> None:
    def encode(name: str, values: Array) -> tuple[Type, Array]:
        if values.shape[1] % 256:
            return IN_BF16(name, values)
        kind = Type.Q6_K if "down" in name else Type.Q4_K
        return kind, random_blocks(kind, values.shape)

    folder = write_family("llama", tmp_path / "hf", hidden_size=256, intermediate_size=512, **PLAIN)
    write_gguf(folder, tmp_path / "tiny.gguf", encode)
    result = quantize(tmp_path / "tiny.gguf", "5bpw", tmp_path / "out")
    assert result.verification.passed
    assert any(notice.startswith("llama.cpp has quantized this model already") for notice in result.notices)


@pytest.mark.parametrize("kind", AFFINE)
def test_blocks_of_an_affine_type_are_kept_bit_by_bit(kind: str, tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "hf")
    values = write_gguf(folder, tmp_path / "tiny.gguf", blocks_of(Type[kind]))
    result = quantize(tmp_path / "tiny.gguf", "max", tmp_path / "out")
    assert result.verification.passed
    assert {str(choice.format) for choice in result.plan.choices} == {AFFINE[kind]}
    assert max(choice.error for choice in result.plan.choices) == 0
    written: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for path in ("model.layers.1.mlp.down_proj", "model.embed_tokens"):
        scales, biases = (written[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        bits = int(AFFINE[kind][0])
        restored = mx.dequantize(written[f"{path}.weight"], scales, biases, group_size=32, bits=bits)
        np.testing.assert_allclose(np.array(restored), values[f"{path}.weight"], rtol=1e-5, atol=1e-8)


def test_scales_that_the_dtype_of_the_family_rounds_are_said_at_the_start(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path / "hf")
    write_gguf(folder, tmp_path / "tiny.gguf", blocks_of(Type.Q4_1))
    usual, half = (open_source(str(tmp_path / "tiny.gguf"), dtype=dtype) for dtype in ("", "float16"))
    said = [sum("--dtype float16 keeps them" in notice for notice in source.notices) for source in (usual, half)]
    assert said == [1, 0]
    assert not usual.carried and half.carried


@pytest.mark.parametrize("kind", [Type.BF16, Type.Q4_0])
def test_the_version_of_the_package_that_reads_a_file_is_recorded(kind: Type, tmp_path: Path) -> None:
    folder = write_family("llama", tmp_path / "hf", **PLAIN)
    write_gguf(folder, tmp_path / "tiny.gguf", blocks_of(kind))
    source = open_source(tmp_path / "tiny.gguf")
    assert any("llama.cpp has quantized" in notice for notice in source.notices) == (kind != Type.BF16)
    assert not any("dropped" in notice for notice in source.notices)
    result = quantize(tmp_path / "tiny.gguf", "5bpw", tmp_path / "out")
    versions = {"gguf": version("gguf")}
    assert result.manifest.versions.items() >= versions.items()
    assert read_analysis(result.analysis).versions.items() >= versions.items()
    assert "gguf" not in quantize(folder, "5bpw", tmp_path / "plain").manifest.versions


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "hf")
    write_gguf(folder, tmp_path / "whole.gguf")
    parts = [tmp_path / f"tiny-Q4-0000{index}-of-00002.gguf" for index in (1, 2)]
    split_gguf(tmp_path / "whole.gguf", parts)
    whole, split = open_source(tmp_path / "whole.gguf"), open_source(parts[1])
    assert split.folder.name == model_name(parts[0]) == "tiny-Q4"
    assert split.identity == whole.identity
    parts[0].unlink()
    with pytest.raises(MintError, match=r"1 of 2 parts are missing, first tiny-Q4-00001"):
        locate(parts[1])


def test_a_folder_with_one_file_is_that_model_and_one_with_two_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    folder = write_model("llama", tmp_path / "hf", tokenizer=True)
    write_gguf(folder, tmp_path / "models" / "one.gguf", tokens="")
    with pytest.raises(MintError, match=r"it has no tokenizer; needed: tokenizer\.json beside it"):
        locate(tmp_path / "models")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "models" / name).write_bytes((folder / name).read_bytes())
    converted = locate(tmp_path / "models")
    assert (converted / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert locate(tmp_path / "models" / "one.gguf") == converted
    (tmp_path / "models" / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(MintError, match=r"2 GGUF models \(one.gguf, two.gguf\); needed: the path of one file"):
        locate(tmp_path / "models")


def test_the_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "hf")
    write_gguf(folder, tmp_path / "tiny.gguf")
    tokenizer = read_tokenizer(locate(tmp_path / "tiny.gguf"))
    assert tokenizer.encode("</s>") == [1] and tokenizer.eos_token_id == 1
    text = "Ab c, 東"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(WHOLE)) > 1
    write_gguf(folder, tmp_path / "llama3.gguf", tokens="llama-bpe")
    assert read_tokenizer(locate(tmp_path / "llama3.gguf")).encode(WHOLE) == [0, 511]  # behind BOS
    write_gguf(folder, tmp_path / "odd.gguf", tokens="jais-9")
    with pytest.raises(
        MintError, match=r"splits text by the rule 'jais-9', which mint does not know; needed: tokenizer"
    ):
        locate(tmp_path / "odd.gguf")


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"attention.clamp_kqv": 8.0}, {}, r"the setting llama.attention.clamp_kqv = 8.0 is not known"),
        ({"rope.scaling.type": "dynamic", "rope.scaling.factor": 2.0}, {}, "rope.scaling.type is 'dynamic'"),
        ({"rope.dimension_count": 16}, {}, "heads of 32 with 16 rotated"),
        ({}, {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}, "the tensor blk.0.attn_sinks.weight is not known"),
        ({}, {"rope_freqs.weight": np.linspace(1, 3, 16, dtype=np.float32)}, "not those of Llama 3"),
    ],
    ids=str,
)
def test_what_a_config_cannot_say_is_refused(
    settings: dict[str, Any], tensors: dict[str, Array], message: str, tmp_path: Path
) -> None:
    folder = write_model("llama", tmp_path / "hf")
    write_gguf(folder, tmp_path / "tiny.gguf", settings=settings, tensors=tensors)
    with pytest.raises(MintError, match=message):
        open_source(tmp_path / "tiny.gguf")
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_the_factors_of_llama_3_become_its_settings(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    folder = write_family("llama", tmp_path / "hf", rope_theta=500000.0, rope_scaling=scaling, **PLAIN)
    expected = open_source(folder, dtype="float32")
    heads = expected.config["hidden_size"] // expected.config["num_attention_heads"]
    periods = 2 * np.pi * 500000.0 ** (np.arange(0, heads, 2) / heads)
    smooth = (8192 / periods - 1) / 3
    factors = np.where(periods < 2048, 1, np.where(periods > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    write_gguf(folder, tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": factors.astype(np.float32)})
    source = open_source(tmp_path / "tiny.gguf", dtype="float32")
    assert {name: source.config["rope_scaling"][name] for name in scaling} == scaling
    assert mx.allclose(_logits(source), _logits(expected), atol=1e-5)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"nowhere\.gguf: no such file; needed: the path of a GGUF file"):
        open_source(tmp_path / "nowhere.gguf")
    folder = write_model("llama", tmp_path / "hf")
    write_gguf(folder, tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    for name, content in (("short", data[:1000]), ("cut", data[:-5000]), ("other", b"GGUF" * 100), ("head", b"GGUF")):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(MintError, match=rf"{name}.gguf: .*download it again") as caught:
            open_source(tmp_path / f"{name}.gguf")
        assert "unpack" not in str(caught.value)  # the words of Python's struct
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(MintError, match=r"architecture 'mamba', of which mint knows llama, .*original model"):
        open_source(tmp_path / "mamba.gguf")


@pytest.mark.parametrize("name", ["config.json", "*.safetensors"])
def test_a_conversion_that_lost_bytes_is_made_again(name: str, tmp_path: Path) -> None:
    write_gguf(write_model("llama", tmp_path / "hf"), tmp_path / "tiny.gguf")
    folder = locate(tmp_path / "tiny.gguf")
    path = next(folder.glob(name))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert locate(tmp_path / "tiny.gguf") == folder
    assert path.read_bytes() == whole


@pytest.mark.parametrize("count", [2**61, 2**40, 10**6])
@pytest.mark.parametrize("kind", [0, 4, 8, 9])
def test_a_file_that_counts_beyond_its_end_is_refused_at_once(kind: int, count: int, tmp_path: Path) -> None:
    value = struct.pack("<Q1sIIQ", 1, b"a", 9, kind, count)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + value + bytes(64))
    with pytest.raises(MintError, match="not a GGUF file that can be read"):
        read_gguf([tmp_path / "a.gguf"])
