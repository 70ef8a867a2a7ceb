"""Every constant epsilon of a norm in mlx_lm's classes is that of the original, or the user is told."""

import ast
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import mlx_lm.models
import pytest

from mint.model.originals.epsilons import CALLED, ORIGINALS
from mint.model.source import open_source
from tools.models.families import write_family

MLX = Path(mlx_lm.models.__path__[0])
READ = "config"  # stands for an epsilon that is no constant
BUILT_IN = ("RMSNorm", "LayerNorm", "GroupNorm")  # of mlx.nn and torch.nn
Norms = dict[str, set[str]]  # attributes of modules, and the epsilons of their norms

# norms with a constant for which no original is known, or whose original has the same one
ALIKE = {
    ("afm7", "q_norm"), ("afm7", "k_norm"),  # no original was published
    ("kimi_k3", "q_a_layernorm"), ("kimi_k3", "kv_a_layernorm"),  # the same
    ("olmo", "att_norm"), ("olmo", "ff_norm"), ("olmo", "norm"),  # constants of the original too
}  # fmt: skip
# norms of towers, which have the names of those of the text
TOWERS = {("gemma3n", "norm"), ("llama4", "input_layernorm"), ("llama4", "post_attention_layernorm"),
          ("minimax", "norm"), ("muse_spark", "norm1"), ("muse_spark", "norm2"), ("qwen3_5", "norm")}  # fmt: skip


def defaults(tree: ast.AST) -> dict[str, tuple[int, str]]:
    """The classes with an epsilon: its place among the arguments, and its default."""
    places = {}
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for function in kind.body:
            if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                names = [argument.arg for argument in function.args.args][1:]
                values = dict(zip(names[::-1], function.args.defaults[::-1], strict=False))
                for name in names:
                    if "eps" in name:
                        places[kind.name] = names.index(name), text_of(values.get(name))
    return places


def text_of(node: ast.AST | None) -> str:
    """A constant as a number, and any other expression as `READ`."""
    return f"{node.value:g}" if isinstance(node, ast.Constant) and isinstance(node.value, float) else READ


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def norms_of(path: Path, classes: dict[str, tuple[int, str]]) -> Norms:
    """The norms that a file gives to attributes."""
    tree, norms = ast.parse(path.read_text()), Norms()
    classes = {**classes, **defaults(tree)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
            continue
        for call in ast.walk(node.value):
            if not isinstance(call, ast.Call) or "norm" not in name_of(call.func).lower():
                continue
            is_of_package = isinstance(call.func, ast.Attribute) and call.func.attr in BUILT_IN
            place, default = (1, "1e-05") if is_of_package else classes.get(name_of(call.func), (0, READ))
            if is_of_package or name_of(call.func) in classes:
                given = [keyword.value for keyword in call.keywords if "eps" in str(keyword.arg)]
                given += call.args[place : place + 1]
                norms.setdefault(node.targets[0].attr, set()).add(text_of(given[0]) if given else default)
    return norms


def mlx_norms() -> Iterator[tuple[str, Norms]]:
    """The norms of every model file of mlx_lm."""
    files = sorted(MLX.glob("*.py"))
    shared: dict[str, tuple[int, str]] = {}
    for path in files:
        shared |= defaults(ast.parse(path.read_text()))
    for path in files:
        yield path.stem, norms_of(path, shared)


NORMS = dict(mlx_norms())


def is_known(model: str, name: str) -> bool:
    ends = {end.rpartition(".")[2] for end in ORIGINALS.get(model, {})}
    return name in ends or (model, name) in ALIKE | TOWERS


def test_the_scan_finds_norms() -> None:
    assert sum(map(len, NORMS.values())) > 300
    assert NORMS["longcat_flash"]["q_a_layernorm"] == {"1e-05"}
    assert NORMS["llama"]["norm"] == {READ}


def test_every_constant_of_a_class_has_an_original_or_a_reason() -> None:
    constants = {(model, name) for model, norms in NORMS.items() for name, texts in norms.items() if texts != {READ}}
    assert {pair for pair in constants if not is_known(*pair)} == set()


def test_every_constant_in_a_call_has_an_original() -> None:
    for path in sorted(MLX.glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        values = [value for call in calls if name_of(call.func) == "rms_norm"
                  for value in (*call.args, *(keyword.value for keyword in call.keywords))]  # fmt: skip
        has_constant = any(text_of(value) != READ for value in values)
        assert has_constant == (path.stem in CALLED) or path.stem == "llama4_text", path.stem


def original_norms(model: str) -> Norms:
    """The norms of the class of transformers; none where it has no such model."""
    spec = find_spec("transformers")
    assert spec and spec.origin
    path = Path(spec.origin).parent / "models" / model / f"modeling_{model}.py"
    return norms_of(path, {}) if path.exists() else {}


@pytest.mark.parametrize("model", [model for model in NORMS if original_norms(model)])
def test_a_norm_has_the_epsilon_of_transformers_or_the_table_has_that_of_transformers(model: str) -> None:
    originals = original_norms(model)
    table = {end.rpartition(".")[2]: value for end, value in ORIGINALS.get(model, {}).items()}
    for name in NORMS[model].keys() & originals.keys():
        if name in table:
            value = table[name]
            assert originals[name] == {f"{value:g}" if isinstance(value, float) else READ}, name
        else:
            assert NORMS[model][name] == originals[name] or (model, name) in TOWERS, name


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("longcat_flash", {}, "longcat_flash model adds 1e-05 instead of 1e-06 in kv_a_layernorm, q_a_layernorm:"),
        ("glm4_moe_lite", {"rms_norm_eps": 1e-5}, "adds 1e-05 instead of 1e-06 in kv_a_layernorm, q_a_layernorm:"),
        ("glm4_moe_lite", {"rms_norm_eps": 1e-6}, ""),
        ("glm_moe_dsa", {}, "glm_moe_dsa model adds 1e-05 instead of 1e-06 in k_norm:"),
        ("mamba2", {"layer_norm_epsilon": 1e-6}, "adds 1e-05 instead of 1e-06 in norm:"),
        ("mamba2", {"layer_norm_epsilon": 1e-5}, ""),
        ("nanochat", {"rms_norm_eps": 1e-6}, "adds 1e-05 instead of 1e-06 in calls of rms_norm:"),
        ("nanochat", {"rms_norm_eps": 1e-5}, ""),
        ("rwkv7", {"norm_eps": 1e-5}, "adds 0.00064 instead of 0.00032 in g_norm:"),
        ("deepseek_v3", {"rms_norm_eps": 1e-5}, ""),
    ],
)
def test_another_epsilon_than_the_original_s_is_told(family: str, changes: dict[str, float], text: str,
                                                     tmp_path: Path) -> None:  # fmt: skip
    folder = write_family(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    notices = [notice for notice in open_source(folder).notices if "where their inputs are small" in notice]
    assert len(notices) == bool(text)
    assert text in "".join(notices)
