import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten

from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.kernels.storage import DTYPES
from mint.model.kv_trace import active_experts, context_memory
from mint.model.loaders.loader import TreeLoader
from mint.model.loaders.table import TREE_LOADERS
from mint.model.roles import UNKNOWN
from mint.model.source import open_source
from tests.conftest import FULL_PRECISION
from tests.worlds.encodings import edit_config
from tests.worlds.zoo import write_model

Make = Callable[..., Path]


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_every_source_tensor_ends_in_a_unit_a_parameter_or_the_list_of_dropped(name: str, make_model: Make) -> None:
    source = open_source(make_model(name, shards=3))
    used = {tensor for unit in source.units for tensor in unit.sources}
    used |= {tensor for parameter in source.parameters for tensor in parameter.sources}
    on_disk = set(source.tensors())
    assert used | set(source.dropped) == on_disk
    assert not used & set(source.dropped)
    assert all(unit.sources for unit in source.units)


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_no_module_of_a_known_architecture_is_unknown(name: str, make_model: Make) -> None:
    source = open_source(make_model(name))
    assert [unit.path for unit in source.units if unit.role == UNKNOWN] == []
    assert all(unit.layer >= 0 for unit in source.units if ".layers." in unit.path)


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_a_traced_source_is_one_that_the_weight_depends_on(name: str, make_model: Make) -> None:
    """An independent look: poison one tensor with NaN; exactly the parameters traced to it change."""
    folder = make_model(name)
    source = open_source(folder)
    before = {key: np.asarray(value.astype(mx.float32)) for key, value in source.arrays().items()}
    unit = max(source.units, key=lambda unit: (len(unit.sources), unit.slices))
    poisoned = next(tensor for tensor in unit.sources if source.tensors()[tensor].dtype in ("BF16", "F32"))
    tensor = source.tensors()[poisoned]
    item = {"BF16": b"\xc0\x7f", "F32": b"\x00\x00\xc0\x7f"}[tensor.dtype]
    with (folder / tensor.shard).open("r+b") as file:
        file.seek(tensor.offset)
        file.write(item * (tensor.nbytes // len(item)))
    after = {key: np.asarray(value.astype(mx.float32)) for key, value in open_source(folder).arrays().items()}
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    consumers = {f"{unit.path}.weight" for unit in source.units if poisoned in unit.sources}
    consumers |= {parameter.name for parameter in source.parameters if poisoned in parameter.sources}
    assert changed == consumers


def test_experts_of_one_stack_are_one_unit_fed_from_many_files(make_model: Make) -> None:
    source = open_source(make_model("qwen3_moe", shards=3))
    stacks = [unit for unit in source.units if unit.slices > 1]
    assert {unit.role for unit in stacks} == {"expert_gate", "expert_up", "expert_down"}
    tensors = source.tensors()
    assert all(len(unit.sources) == unit.slices for unit in stacks)
    assert any(len({tensors[name].shard for name in unit.sources}) > 1 for unit in stacks)


def test_a_tied_embedding_is_paid_for_once(make_model: Make) -> None:
    tied = open_source(make_model("llama", "tied", tied=True))
    untied = open_source(make_model("llama", "untied", tied=False))
    assert [unit.role for unit in tied.units if unit.layer < 0] == ["embedding"]
    assert sorted(unit.role for unit in untied.units if unit.layer < 0) == ["embedding", "head"]


def test_the_models_own_rule_is_a_floor(make_model: Make) -> None:
    source = open_source(make_model("qwen3_moe"))
    assert {unit.min_bits for unit in source.units if unit.role == "router"} == {8}


def test_weights_are_cast_as_convert_casts_them(make_model: Make) -> None:
    folder = make_model("llama", dtype="F32")
    assert {unit.dtype for unit in open_source(folder).units} == {"F32"}
    assert {unit.dtype for unit in open_source(folder, dtype="bfloat16").units} == {"BF16"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    source = open_source(folder)
    assert {unit.dtype for unit in source.units} == {"F16"}
    assert {DTYPES[array.dtype] for array in source.arrays().values()} == {"F16"}


def test_opening_reads_no_weights(make_model: Make) -> None:
    """The weights may be gone once the model is open: nothing but headers and samples was needed."""
    folder = make_model("llama")
    before = mx.get_active_memory()
    source = open_source(folder)
    assert mx.get_active_memory() - before < source.nbytes / 10


def test_identity_follows_the_bytes_not_the_folder(make_model: Make) -> None:
    first, same = open_source(make_model("llama", "a")), open_source(make_model("llama", "b"))
    other = open_source(make_model("llama", "c", seed=1))
    assert first.identity == same.identity != other.identity


def test_every_unit_may_at_least_be_kept(make_model: Make) -> None:
    for unit in open_source(make_model("gpt2")).units:
        assert unit.formats[-1] == KEEP


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def _rewrite_header(path: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + text[8 + length :])


def test_a_missing_shard_is_named(make_model: Make) -> None:
    folder = make_model("llama", shards=3)
    _shard(folder).unlink()
    with pytest.raises(MintError, match=r"names 1 shard.*model-00001-of-00003.safetensors"):
        open_source(folder)


def test_a_truncated_shard_is_named_with_what_was_expected(make_model: Make) -> None:
    path = _shard(make_model("llama"))
    needed = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(needed - 100)
    with pytest.raises(MintError, match=rf"needs {needed} bytes, the file has {needed - 100}.*truncated"):
        open_source(path.parent)


@pytest.mark.parametrize("length", [0, 5, 8, 40])
def test_a_shard_cut_inside_its_header_is_named(length: int, make_model: Make) -> None:
    path = _shard(make_model("llama"))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(MintError, match="not a whole safetensors file"):
        open_source(path.parent)


def test_overlapping_offsets_are_refused(make_model: Make) -> None:
    path = _shard(make_model("llama"))

    def overlap(header: dict[str, dict[str, object]]) -> None:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        same = [e for e in entries if e["shape"] == entries[0]["shape"] and e is not entries[0]]
        same[0]["data_offsets"] = entries[0]["data_offsets"]

    _rewrite_header(path, overlap)
    with pytest.raises(MintError, match="overlaps the tensor before it"):
        open_source(path.parent)


def test_offsets_out_of_range_are_refused(make_model: Make) -> None:
    path = _shard(make_model("llama"))

    def shift(header: dict[str, dict[str, object]]) -> None:
        entry = next(entry for name, entry in header.items() if name != "__metadata__")
        entry["data_offsets"] = [0, 10**9]

    _rewrite_header(path, shift)
    with pytest.raises(MintError, match=r"needs \d+ bytes, its offsets give 1000000000"):
        open_source(path.parent)


def test_a_file_that_is_not_safetensors_is_refused(make_model: Make) -> None:
    path = _shard(make_model("llama"))
    path.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"this is not json" + b"\0" * 64)
    with pytest.raises(MintError, match="header is not JSON"):
        open_source(path.parent)


def test_an_index_that_names_a_missing_tensor_is_refused(make_model: Make) -> None:
    folder = make_model("llama", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.ghost.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(MintError, match=r"ghost\.weight in model-00001.*found nowhere"):
        open_source(folder)


def test_a_tensor_in_two_shards_is_refused(make_model: Make) -> None:
    folder = make_model("llama")
    (folder / "model-extra.safetensors").write_bytes(_shard(folder).read_bytes())
    with pytest.raises(MintError, match=r"is in model-extra\.safetensors and in model\.safetensors"):
        open_source(folder)


def test_a_missing_weight_is_named(make_model: Make) -> None:
    path = _shard(make_model("llama"))
    text = path.read_bytes()
    path.write_bytes(text.replace(b"q_proj.weight", b"q_lost.weight", 1))
    with pytest.raises(MintError, match=r"do not fit mlx_lm's llama model.*q_(lost|proj)"):
        open_source(path.parent)


def test_an_unknown_model_type_is_named(make_model: Make) -> None:
    folder = make_model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama9000"}))
    with pytest.raises(MintError, match=r"does not know model_type 'llama9000'.*pip install --upgrade mlx-lm"):
        open_source(folder)


def test_a_model_that_mlx_quantized_is_refused_with_advice(make_model: Make) -> None:
    folder = make_model("llama")
    edit_config(folder, {"quantization": {"group_size": 64, "bits": 4}})
    with pytest.raises(MintError, match=r"already quantized.*original model"):
        open_source(folder)


@pytest.mark.parametrize(
    "extra",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {"quantization": {"bits": None}},
    ],
    ids=str,
)
def test_the_settings_of_a_quantization_that_is_undone_are_dropped(extra: dict[str, object], make_model: Make) -> None:
    plain, folder = make_model("llama", "plain"), make_model("llama")
    edit_config(folder, extra)
    source, expected = open_source(folder), open_source(plain)
    assert source.units == expected.units
    assert any("is dropped" in notice for notice in source.notices) == ("quantization" not in extra)
    weights, plain_weights = source.arrays(), expected.arrays()
    assert all(mx.array_equal(weights[name], plain_weights[name]) for name in weights)


def test_official_gpt_oss_has_the_units_of_the_plain_one(make_model: Make) -> None:
    source, plain = open_source(make_model("gpt_oss_mxfp4")), open_source(make_model("gpt_oss", "plain"))
    assert {unit.path: unit.shape for unit in source.units} == {unit.path: unit.shape for unit in plain.units}
    gate = next(unit for unit in source.units if unit.role == "expert_gate")
    assert {name.rpartition("_")[2] for name in gate.sources} == {"blocks", "scales"}


def test_code_of_the_model_is_never_run(make_model: Make) -> None:
    folder = make_model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "evil.py"}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(MintError, match="brings its own code"):
        open_source(folder)


BROKEN = ["{", "[" * 100_000, "[]", "{}", "5", "null", '"model_type"', '["model_type"]']
BROKEN += ['{"model_type": "llama", "text_config": "?"}', '{"model_type": "llama", "quantization_config": [1]}']


@pytest.mark.parametrize("broken", BROKEN, ids=lambda text: text[:40])
def test_a_broken_config_is_refused(broken: str, make_model: Make) -> None:
    folder = make_model("llama")
    (folder / "config.json").write_text(broken)
    with pytest.raises(MintError, match=r"config\.json"):
        open_source(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MintError, match="no such folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(MintError, match=r"no config\.json"):
        open_source(tmp_path)
    write_model("llama", tmp_path / "model")
    _shard(tmp_path / "model").rename(tmp_path / "model" / "weights.bin")
    with pytest.raises(MintError, match=r"no model\*\.safetensors found.*weights\.bin"):
        open_source(tmp_path / "model")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that MLX opened: one for every module tree that was built of a model in one shard."""
    paths: list[str] = []
    load = mx.load

    def opening(path: str) -> Any:
        paths.append(path)
        return load(path)

    monkeypatch.setattr(mx, "load", opening)
    return paths


def test_one_tree_serves_opening_tracing_and_the_first_reading(builds: list[str], make_model: Make) -> None:
    source = open_source(make_model("qwen3_moe"))
    context_memory(source)
    active_experts(source)
    source.arrays()
    source.opened.take([parameter.name for parameter in source.parameters])
    context_memory(source)
    assert len(builds) == 1
    source.arrays()
    assert len(builds) == 2  # a lazy array can be evaluated once


def test_tracing_takes_off_its_hooks_and_evaluates_nothing(make_model: Make) -> None:
    source = open_source(make_model("qwen3_next"))
    kinds = [type(module) for _, module in source.opened.model.named_modules()]
    first = context_memory(source), active_experts(source)
    before = mx.get_active_memory()
    assert (context_memory(source), active_experts(source)) == first
    assert [type(module) for _, module in source.opened.model.named_modules()] == kinds
    assert mx.get_active_memory() - before < min(unit.nbytes for unit in source.units)  # a few scalars


def test_a_weight_that_was_read_and_dropped_leaves_the_memory(make_model: Make) -> None:
    source = open_source(make_model("llama"))
    arrays = source.arrays()
    for unit in source.units:
        before = mx.get_active_memory()
        weight = arrays.pop(f"{unit.path}.weight")
        mx.eval(weight)
        assert mx.get_active_memory() - before >= unit.nbytes
        del weight
        assert mx.get_active_memory() == before


def test_parameters_are_the_same_from_the_first_reading_and_from_another(make_model: Make) -> None:
    source = open_source(make_model("llama"))
    names = [parameter.name for parameter in source.parameters]
    whole = source.arrays()
    for _ in range(2):
        parameters = source.opened.take(names)
        assert list(parameters) == names
        assert all(mx.array_equal(parameters[name], whole[name]) for name in names)


class OwnBlock(Module):
    def __init__(self) -> None:
        Module.__init__(self)
        self.q_proj = Linear(64, 64, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        product: mx.array = self.q_proj(x)
        return x + product


class OwnModel(Module):
    """A model that mlx_lm does not know."""

    def __init__(self) -> None:
        Module.__init__(self)
        self.embed_tokens = Embedding(32, 64)
        self.layers = [OwnBlock()]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = self.embed_tokens.as_linear(self.layers[0](self.embed_tokens(tokens)))
        return logits


def test_a_package_from_outside_brings_its_own_module_trees(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "own_model"}))
    parameters: dict[str, mx.array] = dict(tree_flatten(Module.parameters(OwnModel())))
    weights = {f"own.{name}": array.astype(mx.bfloat16) for name, array in parameters.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(MintError, match="mlx_lm does not know model_type 'own_model'"):
        open_source(folder)
    own = TreeLoader(
        name="own",
        takes=lambda config: config["model_type"] == "own_model",
        module=lambda config: OwnModel(),
        sanitized=lambda module, arrays: {name.removeprefix("own."): array for name, array in arrays.items()},
    )
    TREE_LOADERS.append(own)
    request.addfinalizer(lambda: TREE_LOADERS.remove(own))
    source = open_source(folder)
    assert [(unit.path, unit.role, unit.sources) for unit in source.units] == [
        ("embed_tokens", "embedding", ("own.embed_tokens.weight",)),
        ("layers.0.q_proj", "q", ("own.layers.0.q_proj.weight",)),
    ]
    for unit in source.units:
        assert mx.array_equal(source.arrays()[f"{unit.path}.weight"], weights[f"own.{unit.path}.weight"])


def test_words_of_an_import_stay_off_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OLMo's first model file prints and ends the process where its package is missing."""
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros((4, 4))})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "olmo"}))
    with pytest.raises(MintError, match=r"does not import its olmo model; needed: .*ai2-olmo"):
        open_source(tmp_path)
    assert capsys.readouterr().out == ""
