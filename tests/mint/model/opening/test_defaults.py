"""A key that a config leaves out has the value of the original library, whatever mlx_lm's class has for it."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import mlx_lm.models
import pytest
from transformers import CONFIG_MAPPING

from mint.model.opening.defaults import DEFAULTS
from mint.model.source import open_source
from mint.pipeline import quantize

# keys that tensors tell, or that change no function: a wrong one ends in shapes that do not fit
ASIDE = re.compile(
    r"^(model_type|tie_word_embeddings|topk_method|mamba_chunk_size|num_nextn_predict_layers|num_kv_shared_layers"
    r"|use_double_wide_mlp|position_embedding_type|time_step_(min|max)|moe_layer_(start|end)_index"
    r"|first_k_dense_replace)$"
    r"|_(size|dim|heads|layers|embeddings|rank|bias|groups)$|_experts$|mamba_(d|n)_"
)


def is_plain(value: Any, other: Any) -> bool:
    """True for a number, a word, nothing, or as many numbers as the other has; sequences of layers are no defaults."""
    if isinstance(value, list | tuple):
        return isinstance(other, list | tuple) and len(value) == len(other)
    return not isinstance(value, dict)


def differing() -> dict[str, dict[str, Any]]:
    """By model type: the defaults of transformers for keys of mlx_lm's classes that have another."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    names = {module.name for module in iter_modules(mlx_lm.models.__path__)} - {"olmo"}  # it needs another package
    for name in sorted(name for name in names if {name, f"{name}_text"} & set(CONFIG_MAPPING.keys())):
        module = import_module(f"mlx_lm.models.{name}")
        classes = [kind for kind in vars(module).values() if is_dataclass(kind) and kind.__module__ == module.__name__]
        for model_type in {name, f"{name}_text"} & set(CONFIG_MAPPING.keys()):
            original = CONFIG_MAPPING[model_type]().to_dict()
            for field in (field for kind in classes for field in fields(kind)):
                if field.default is MISSING or ASIDE.search(field.name) or field.name not in original:
                    continue
                value = original[field.name]
                if is_plain(value, field.default) and not is_same(value, field.default):
                    found[model_type][field.name] = value
    return dict(sorted(found.items()))


def is_same(value: Any, other: Any) -> bool:
    """True for equal values; a list may be a tuple."""
    return bool(list(value) == list(other) if isinstance(value, list | tuple) else value == other)


def test_every_other_default_of_the_original_is_known() -> None:
    assert differing() == DEFAULTS


def test_a_key_that_is_left_out_is_the_original_s_in_the_model_that_is_written(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model("qwen3_next")
    config = json.loads((folder / "config.json").read_text())
    config.pop("norm_topk_prob", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert open_source(folder).config["norm_topk_prob"] is True
    quantize(folder, "6bpw", output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["norm_topk_prob"] is True


@pytest.mark.parametrize("value", [False, None])
def test_a_key_that_is_there_stays(value: object, make_model: Callable[..., Path]) -> None:
    folder = make_model("qwen3_next")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_topk_prob": value}))
    assert open_source(folder).config["norm_topk_prob"] is value
