"""A config means the same in the words of transformers 5 and of transformers 4, and no class overlooks it silently."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import mlx_lm.models
import pytest

from mint.core.errors import MintError
from mint.model.loaders.loader import MLX_LM
from mint.model.opening.renamed import lift_renamed, lift_tied
from mint.model.opening.rope import lift_rope
from mint.model.originals.unseen import unseen_keys
from mint.model.source import open_source
from tests.worlds.zoo import ARCHITECTURES
from tools.models.families import write_family

Make = Callable[..., Path]
takes, readers = MLX_LM.takes, MLX_LM.readers
LINEAR = {"rope_type": "linear", "factor": 4.0, "alpha": 1.0, "long_factor": [1.0]}  # some classes insist on these


def imports(name: str) -> bool:
    """False for a model file whose own package is not installed: it ends the process that imports it."""
    try:
        importlib.import_module(f"mlx_lm.models.{name}")
    except SystemExit:
        return False
    return True


def rotary_classes() -> Iterator[str]:
    """The model types of mlx_lm whose class has a field for the rotary base."""
    for module in pkgutil.iter_modules(mlx_lm.models.__path__):
        if imports(module.name) and takes({"model_type": module.name}):
            args = importlib.import_module(f"mlx_lm.models.{module.name}").ModelArgs
            if is_dataclass(args) and "rope_theta" in {field.name for field in fields(args)}:
                yield module.name


def args_of(config: dict[str, Any]) -> Any:
    from mlx_lm.utils import _get_classes

    lift_rope(readers(config))
    lift_renamed(readers(config))
    return _get_classes(config)[1].from_dict(config)


def bare_config(name: str) -> dict[str, Any]:
    """Small numbers for all fields without default, and lists of one name for lists."""
    args = importlib.import_module(f"mlx_lm.models.{name}").ModelArgs
    missing = (field for field in fields(args) if field.default is MISSING and field.default_factory is MISSING)
    config: dict[str, Any] = {"model_type": name, "num_hidden_layers": 0, "num_attention_heads": 2, "hidden_size": 64}
    config |= {"intermediate_size": 64, "layer_types": []}
    for field in missing:
        text = str(field.type)
        value: Any = 4 if "int" in text or "float" in text else {} if "ict" in text else []
        config.setdefault(field.name, value if "bool" not in text else False)
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"):
        config.pop(key, None)
    return config


CLASSES = list(rotary_classes())


def test_the_sweep_finds_the_classes() -> None:
    assert len(CLASSES) > 70


@pytest.mark.parametrize("name", CLASSES)
def test_a_rotary_base_of_transformers_5_is_that_of_transformers_4(name: str) -> None:
    bare = bare_config(name)
    theta, partial = 123456.0, 0.5
    try:
        old = args_of({**bare, "rope_theta": theta, "partial_rotary_factor": partial})
    except Exception:  # the class needs more than small numbers, or only knows the new words
        old = None
    new = args_of({**bare, "rope_parameters": {"rope_type": "default", "rope_theta": theta,
                                               "partial_rotary_factor": partial}})  # fmt: skip
    assert new.rope_theta == theta
    if old is not None:
        for key in ("partial_rotary_factor", "rope_scaling"):
            plain = getattr(new, key, None) or {}
            if not isinstance(plain, dict) or plain.get("rope_type", plain.get("type", "default")) != "default":
                assert plain == getattr(old, key)


@pytest.mark.parametrize("name", CLASSES)
def test_a_scaling_of_transformers_5_is_that_of_transformers_4(name: str) -> None:
    new = args_of({**bare_config(name), "rope_parameters": {**LINEAR, "rope_theta": 1e5, "partial_rotary_factor": 0.5}})
    if hasattr(new, "rope_scaling"):
        assert LINEAR.items() <= new.rope_scaling.items()
        assert new.rope_scaling.get("type", "linear") == "linear"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the config of a model; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (config | changes).items() if value is not None}))


def test_a_config_of_transformers_5_gives_the_model_of_transformers_4(make_model: Make) -> None:
    old, new = make_model("llama", "old"), make_model("llama", "new")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    rewrite(old, rope_theta=5e5, rope_scaling=scaling)
    rewrite(new, rope_theta=None, rope_scaling=None, rope_parameters={**scaling, "rope_theta": 5e5})
    frequencies = [open_source(folder).opened.model.layers[0].self_attn.rope._freqs for folder in (old, new)]
    assert frequencies[0].tolist() == frequencies[1].tolist()
    assert open_source(new).config["rope_theta"] == 5e5


def test_the_parameters_of_two_kinds_of_layers_are_two_bases(make_model: Make) -> None:
    folder = make_model("gemma3_text")
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e5},
             "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}  # fmt: skip
    rewrite(folder, rope_theta=None, rope_local_base_freq=None, rope_scaling=None, rope_parameters=kinds)
    config = open_source(folder).config
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (7e5, 2e4)
    assert config["rope_scaling"]["factor"] == 8.0


def test_a_part_of_a_config_is_lifted_for_the_class_that_reads_it(make_model: Make) -> None:
    folder = make_model("llama4")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    rewrite(folder, text_config={**text, "rope_theta": None, "rope_parameters": {"rope_theta": 7e5}})
    assert open_source(folder).config["text_config"]["rope_theta"] == 7e5


@pytest.mark.parametrize("part", ["", "attn_config"])
def test_a_base_that_a_class_looks_for_in_a_dictionary_is_put_there(part: str, tmp_path: Path) -> None:
    folder = write_family("dbrx", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["attn_config"]["rope_theta"]
    (config[part] if part else config)["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_source(folder).config["attn_config"]["rope_theta"] == 5e5


def test_a_part_without_a_class_of_its_own_is_read_by_the_class_that_knows_most_of_it() -> None:
    kinds = {"full_attention": {"rope_theta": 7e5}, "sliding_attention": {"rope_theta": 2e4}}
    text = {"model_type": "gemma3_words", "hidden_size": 64, "sliding_window_pattern": 6, "rope_parameters": kinds}
    config: dict[str, Any] = {"model_type": "gemma3", "text_config": text, "vision_config": {"rope_parameters": kinds}}
    lift_rope(readers(config))
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (7e5, 2e4)
    assert config["vision_config"].keys() == {"rope_parameters"}


def test_two_bases_for_a_class_of_one_are_refused(make_model: Make) -> None:
    folder = make_model("llama")
    kinds = {"full_attention": {"rope_theta": 7e5}, "sliding_attention": {"rope_theta": 2e4}}
    rewrite(folder, rope_theta=None, rope_parameters=kinds)
    with pytest.raises(MintError, match=r"bases 700000\.0 and 20000\.0.*llama model has one base"):
        open_source(folder)


@pytest.mark.parametrize("broken", [0, 5, "x", [1], [{}]], ids=str)
def test_parameters_that_are_no_object_are_refused(broken: Any, make_model: Make) -> None:
    folder = make_model("llama")
    rewrite(folder, rope_parameters=broken)
    with pytest.raises(MintError, match=r"rope_parameters is .*needed: a JSON object"):
        open_source(folder)


# gemma2's and phi3's classes attend to everything; the zoo claims silu
UNSEEN = {
    "gemma2": "hidden_act, sliding_window",
    "phi3": "sliding_window",
    "gemma3_text": "hidden_act",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configs_of_the_zoo_are_seen_whole(name: str) -> None:
    notices = unseen_keys(readers(json.loads(json.dumps(ARCHITECTURES[name].config))))
    unread = [notice.partition("read ")[2] for notice in notices if "does not read" in notice]
    assert unread == ([f"{UNSEEN[name]}; it computes without"] if name in UNSEEN else [])
    assert len(notices) - len(unread) == (name == "jamba")  # its class differs whatever the config says


def test_meaning_that_no_class_reads_is_a_notice(make_model: Make) -> None:
    folder = make_model("olmo2")
    rewrite(folder, partial_rotary_factor=0.25, logits_scaling=8.0, hidden_act="tanhshrink", attn_scaling=1.0)
    (notice,) = open_source(folder).notices
    assert "olmo2 model does not read hidden_act, partial_rotary_factor, logits_scaling;" in notice


@pytest.mark.parametrize("key", ["use_bidirectional_attention", "is_causal"])
def test_attention_to_later_tokens_that_no_class_reads_is_a_notice(key: str, make_model: Make) -> None:
    folder = make_model("gemma3_text")
    others = open_source(folder).notices
    rewrite(folder, **{key: key != "is_causal"})
    notices = open_source(folder).notices
    assert any(f" {key}" in notice for notice in notices)
    rewrite(folder, **{key: key == "is_causal"})
    assert open_source(folder).notices == others


def test_the_window_of_a_mistral_without_kinds_of_layers_is_a_notice(make_model: Make) -> None:
    folder = make_model("llama")
    rewrite(folder, model_type="mistral", sliding_window=128)
    (notice,) = open_source(folder).notices
    assert "llama model does not read sliding_window" in notice
    rewrite(folder, sliding_window=512)  # as many as there are positions
    assert open_source(folder).notices == ()


def test_the_layers_of_transformers_5_are_in_the_words_of_the_class(tmp_path: Path) -> None:
    folder = write_family(
        "granitemoehybrid", tmp_path / "model", layer_types=["mamba", "attention"] * 2, shared_intermediate_size=128
    )
    older = open_source(folder)
    rewrite(folder, layer_types=["linear_attention", "full_attention"] * 2)
    newer = open_source(folder)
    assert newer.config["layer_types"] == ["mamba", "attention"] * 2
    assert newer.units == older.units


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_text_model_alone_has_the_type_of_its_multimodal_model(family: str, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / "model")
    units = open_source(folder).units
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **text}))
    source = open_source(folder)
    assert (source.config["model_type"], source.units) == (family, units)


HEADS = [  # at the top, in the text's part, a head in the checkpoint, tied
    (False, None, True, False), (True, None, True, True), (False, True, True, False), (True, False, True, False),
    (True, None, False, True), (True, False, False, True), (False, True, False, True), (False, None, False, None),
    (False, False, False, False), (None, False, True, False),
    (None, None, True, False), (None, None, False, None), (None, True, True, True), (None, True, False, True),
]  # fmt: skip


@pytest.mark.parametrize(("top", "own", "has_head", "tied"), HEADS)
def test_a_tie_at_the_top_of_a_config_is_that_of_the_text(
    top: bool | None, own: bool | None, has_head: bool, tied: bool | None
) -> None:
    text = {"model_type": "llama"} | ({} if own is None else {"tie_word_embeddings": own})
    config: dict[str, Any] = {"model_type": "mistral3", "text_config": text}
    config |= {} if top is None else {"tie_word_embeddings": top}
    lift_tied(config, readers(config), has_head=has_head)
    assert config["text_config"].get("tie_word_embeddings") is tied


def test_a_head_that_no_config_speaks_of_is_used(make_model: Make) -> None:
    folder = make_model("llama")
    rewrite(folder, tie_word_embeddings=None)
    source = open_source(folder)
    assert "head" in {unit.role for unit in source.units}
    assert source.notices == ()


DERIVED = [
    ("mamba2", {"expand": 2, "hidden_size": 64}, "intermediate_size", 128),
    ("exaone_moe", {"mlp_layer_types": ["dense", "sparse"]}, "is_moe_layer", [False, True]),
    (
        "minimax",
        {"head_dim": 32, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rotary_dim",
        16,
    ),
]


@pytest.mark.parametrize(("name", "values", "key", "value"), DERIVED)
def test_a_key_that_follows_from_others_is_derived(name: str, values: dict[str, Any], key: str, value: Any) -> None:
    config = {"model_type": name, **values}
    lift_renamed(readers(config))
    assert config[key] == value


def test_a_dtype_of_transformers_5_casts_as_a_torch_dtype(make_model: Make) -> None:
    folder = make_model("llama", dtype="F32")
    rewrite(folder, torch_dtype=None, dtype="bfloat16")
    source = open_source(folder)
    assert {unit.dtype for unit in source.units} == {"BF16"}
    assert "are cast from F32 to BF16" in "".join(source.notices)


WRITTEN = [
    "llama",
    "mixtral",
    "qwen3_moe",
    "exaone4",
    "glm4_moe",
    "qwen3_next",
    "gemma3_text",
    "gpt_oss",
    "gpt_neox",
    "olmo3",
    "phi3",
    "glm4",
]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_config_that_transformers_writes_is_understood(name: str) -> None:
    from transformers import CONFIG_MAPPING

    config = json.loads(CONFIG_MAPPING[name]().to_json_string(use_diff=False))
    parameters = config["rope_parameters"]
    main = parameters.get("full_attention", parameters)
    args = args_of(config)
    assert getattr(args, "rope_theta", getattr(args, "rotary_emb_base", None)) == main["rope_theta"]
    if "sliding_attention" in parameters and hasattr(args, "rope_local_base_freq"):
        assert args.rope_local_base_freq == parameters["sliding_attention"]["rope_theta"]
    if main["rope_type"] != "default":
        assert args.rope_scaling["type"] == main["rope_type"]
    if "partial_rotary_factor" in main:
        factor = getattr(args, "partial_rotary_factor", getattr(args, "rotary_pct", None))
        assert factor == main["partial_rotary_factor"]


ODD: list[dict[str, Any]] = [
    {"rope_scaling": 0}, {"rope_scaling": 5}, {"head_dim": 1.5}, {"head_dim": 0}, {"head_dim": "x"},
    {"layer_types": []}, {"num_hidden_layers": "2"}, {"num_attention_heads": 0}, {"hidden_size": []},
    {"vocab_size": -1}, {"rope_theta": "x"}, {"intermediate_size": {}}, {"text_config": [1]}, {"eos_token_id": {}},
    {"model_type": ["llama"]}, {"model_type": {}}, {"model_type": "activations"}, {"architectures": 5},
    {"rms_norm_eps": []}, {"rope_scaling": {"rope_type": "odd"}}, {"tie_word_embeddings": "perhaps"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3_text", "deepseek_v3"])
def test_an_odd_config_opens_or_is_refused_by_name(odd: dict[str, Any], name: str, make_model: Make) -> None:
    folder = make_model(name)
    rewrite(folder, **odd)
    try:
        open_source(folder)
    except MintError as error:
        assert "config.json" in str(error) or "weights do not fit" in str(error) or "model_type" in str(error)
        assert ("pip install" in str(error)) == ("does not know model_type" in str(error))


def test_a_missing_key_is_named(make_model: Make) -> None:
    folder = make_model("qwen3_moe")
    rewrite(folder, rope_theta=None)
    with pytest.raises(MintError, match=r"qwen3_moe model cannot be built from config\.json: .*lacks rope_theta"):
        open_source(folder)


def test_the_key_that_an_exception_is_about_is_named(make_model: Make) -> None:
    folder = make_model("llama")
    rewrite(folder, head_dim=1.5)
    with pytest.raises(MintError, match=r"head_dim=1\.5"):
        open_source(folder)


LINEAR_LAYERS, FULL = "linear_attention", "full_attention"


@pytest.mark.parametrize(
    ("layers", "interval"),
    [([LINEAR_LAYERS, FULL] * 3, 2), ([LINEAR_LAYERS] * 3 + [FULL], 4), ([FULL, LINEAR_LAYERS, FULL], None)],
)
def test_a_pattern_of_layers_follows_from_their_list_or_is_a_notice(layers: list[str], interval: int | None) -> None:
    config = {"model_type": "qwen3_next", "layer_types": layers, "num_hidden_layers": len(layers)}
    lift_renamed(readers(config))
    assert config.get("full_attention_interval") == interval
    assert any("layer_types" in notice for notice in unseen_keys(readers(config))) == (interval is None)


def test_layers_that_follow_no_pattern_of_their_class_are_a_notice() -> None:
    layers = [LINEAR_LAYERS, FULL, FULL, LINEAR_LAYERS]
    config = {"model_type": "qwen3_next", "layer_types": layers, "full_attention_interval": 2}
    (notice,) = unseen_keys(readers(config))
    assert "qwen3_next model does not read layer_types;" in notice
