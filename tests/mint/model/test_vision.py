"""Multimodal models open as mlx_vlm builds them: towers beside a language model, with one set of laws for both."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx_vlm.utils import load_model
from safetensors.numpy import load_file, save_file

import mint
from mint.analysis.probes.probe import probed_units
from mint.core.errors import MintError
from mint.core.version import install_command
from mint.formats.format import KEEP
from mint.model.loaders.reloading import taken_weights
from mint.model.loaders.vision import MLX_VLM, language_path, tower_obstacle
from mint.model.passes.logits import logits_of
from mint.model.roles import TOWER
from mint.quality.forward import open_wide
from tests.worlds.encodings import read_tensors, write_tensors
from tests.worlds.pictures import FAMILIES, write_multimodal
from tools.models.vision_families import write_vision_family

pytestmark = pytest.mark.usefixtures("vision")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_multimodal_model_is_used_and_towers_are_in_no_layer(family: str, tmp_path: Path) -> None:
    source = mint.open_source(write_multimodal(family, tmp_path / "model"))
    assert (source.loader, source.dropped, source.dropped_towers, source.notices) == ("mlx_vlm", (), (), ())
    assert source.layers == 2
    for unit in source.units:
        assert (unit.role == TOWER) == (unit.layer == -1 and not unit.path.startswith("language_model."))
    assert {unit.role for unit in source.units} >= {TOWER, "q", "down", "embedding", "head"}
    assert any(unit.role == TOWER and not unit.stays for unit in source.units)


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_the_rotary_base_of_a_newer_config_reaches_the_language_model(family: str, tmp_path: Path) -> None:
    path = write_vision_family(family, tmp_path / "model") / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    scaling = text.pop("rope_scaling", None) or {}
    rope = {"rope_theta": 7e5, "rope_type": "default"} | {name: scaling[name] for name in scaling if name != "type"}
    text |= {"rope_parameters": rope, "rope_theta": None}
    newer = {name: value for name, value in config.items() if name not in text}
    sections = {name: config[name] for name in ("model_type", "vision_config", "torch_dtype")}
    path.write_text(json.dumps({**newer, **sections, "text_config": text}))
    source = mint.open_source(path.parent)
    assert source.opened.model.config.text_config.rope_theta == 7e5
    assert source.notices == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_over_text_is_that_of_mlx_vlm_whatever_came_before(family: str, tmp_path: Path) -> None:
    folder = write_multimodal(family, tmp_path / "model")
    tokens = mx.array([[7, 8, 9, 10, 11]])
    stock = load_model(folder)
    wide = open_wide(folder)
    logits_of(wide, tokens[:, :2])  # a shorter prompt before
    ours = np.array(logits_of(wide, tokens))
    theirs = np.array(stock.language_model(tokens, cache=None).logits.astype(mx.float32))
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)  # theirs is in bf16


def test_the_towers_of_a_newer_export_have_the_same_units(tmp_path: Path) -> None:
    older, newer = (write_multimodal("qwen2_5_vl", tmp_path / name) for name in ("older", "newer"))
    names = {"visual.": "model.visual.", "model.": "model.language_model."}
    tensors = load_file(newer / "model.safetensors")
    renamed = {
        next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name): array
        for name, array in tensors.items()
    }
    save_file(renamed, newer / "model.safetensors")
    paths = [[unit.path for unit in mint.open_source(folder).units] for folder in (older, newer)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_units_are_measured_alike_with_and_without_towers(family: str, tmp_path: Path) -> None:
    folder = write_multimodal(family, tmp_path / "model")
    vision, text = (mint.open_source(folder, loader=loader) for loader in ("mlx_vlm", "mlx_lm"))
    assert any("text only: mlx_lm drops the vision tower" in notice for notice in text.notices)
    both = [mint.analyze(source, tmp_path / f"{source.loader}.mint") for source in (vision, text)]
    units = {unit.path: unit for unit in vision.units}
    for unit in text.units:
        assert (units[unit.path].role, units[unit.path].layer) == (unit.role, unit.layer)
        assert both[0].measurements[unit.path].errors == both[1].measurements[unit.path].errors
    assert {unit.path for unit in vision.units if unit.role != TOWER} - {unit.path for unit in text.units} <= {
        "language_model.lm_head"  # Gemma's is tied in mlx_lm
    }


def test_text_units_get_the_same_formats_beside_towers_that_are_kept(tmp_path: Path) -> None:
    folder, formats = write_multimodal("qwen3_vl", tmp_path / "model"), []
    for loader in ("mlx_lm", "mlx_vlm"):
        analysis = mint.analyze(mint.open_source(folder, loader=loader), tmp_path / f"{loader}.mint")
        towers = [f"{unit.path}=keep" for unit in analysis.units if unit.role == TOWER]
        problem = mint.Recipe(lock=tuple(towers)).problem(analysis)
        plan = problem.plan((2 * problem.smallest_bytes + problem.largest_bytes) // 3)
        formats.append({choice.path: choice.format for choice in plan.choices if choice.role != TOWER})
    # a third of the way is the same for both: the towers add to all sizes alike
    different = [path for path in formats[0] if formats[0][path] != formats[1][path]]
    assert len(different) <= 1  # headers differ by a few bytes


def test_no_objective_gives_a_tower_fewer_than_8_bits(tmp_path: Path) -> None:
    source = mint.open_source(write_multimodal("llava", tmp_path / "model"))
    analysis = mint.analyze(source, tmp_path / "a.mint")
    for objective in ("output", "mint", "energy"):
        problem = mint.Recipe(objective=objective).problem(analysis)
        plan = problem.plan(problem.smallest_bytes)
        bits = {choice.format.bits for choice in plan.choices if choice.role == TOWER}
        assert bits == {KEEP.bits, 8}  # its table of positions is kept
    assert not [unit for unit in probed_units(source.units, None) if unit.role == TOWER]  # text does not reach them


def test_units_that_a_loader_reads_from_one_weight_have_one_format(tmp_path: Path) -> None:
    """mlx_vlm's Gemma 3 takes the weight of its head from its embedding, also when both are packed."""
    source = mint.open_source(write_multimodal("gemma3", tmp_path / "model"))
    head, embedding = "language_model.lm_head", "language_model.model.embed_tokens"
    assert {unit.path: unit.twin for unit in source.units if unit.twin} == {head: embedding}
    analysis = mint.analyze(source, tmp_path / "a.mint")
    problem = mint.Recipe().problem(analysis)
    sizes = np.linspace(problem.smallest_bytes, problem.largest_bytes, 9).astype(int)
    for budget in sizes:
        formats = problem.plan(int(budget)).formats
        assert formats[head] == formats[embedding]
    with pytest.raises(MintError, match="loaded from one weight; set both to one format"):
        mint.Recipe(lock=(f"{head}=4/64", f"{embedding}=8/64")).problem(analysis)


def test_a_class_that_changes_a_written_model_is_refused_before_the_work(tmp_path: Path) -> None:
    loader = replace(
        MLX_VLM,
        module=lambda config: Linear(2, 2),
        sanitized=lambda model, arrays: {name: array.T for name, array in arrays.items()},
    )
    with pytest.raises(MintError, match="changes tower when it loads the written model"):
        taken_weights(tmp_path, loader, {"model_type": "a"}, {"tower": mx.zeros((2, 4))})


def test_a_matrix_whose_weight_the_code_of_a_tower_reads_is_kept(tmp_path: Path) -> None:
    model = mint.open_source(write_multimodal("qwen2_5_vl", tmp_path / "model")).opened.model
    matrices = {path: module for path, module in model.named_modules() if type(module) is Linear}
    assert {tower_obstacle(path, module, model) for path, module in matrices.items()} == {""}
    read = "vision_tower.patch_embed.proj"  # mlx_vlm reads its dtype
    assert "reads its weight itself" in tower_obstacle(read, Linear(4, 4), model)


def test_towers_are_refused_where_there_are_none_or_no_package_holds_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MintError, match=r"no vision or audio tower found; needed a multimodal model, or no loader"):
        mint.open_source(llama, loader="mlx_vlm")
    with pytest.raises(MintError, match="is not a package of model classes; needed one of: mlx_lm, mlx_vlm"):
        mint.open_source(llama, loader="torch")
    folder = write_multimodal("gemma3", tmp_path / "model")
    monkeypatch.setattr("mint.model.loaders.vision.find_spec", lambda name: None)
    with pytest.raises(MintError, match=re.escape(f"not installed; needed: {install_command('vision')}")):
        mint.open_source(folder, loader="mlx_vlm")
    source = mint.open_source(folder)
    assert source.loader == "mlx_lm"
    (notice,) = (notice for notice in source.notices if "text only" in notice)
    assert notice.endswith(f"; {install_command('vision')} keeps such towers")


def test_an_unknown_family_says_which_package_does_not_know_it(tmp_path: Path) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    for model_type, loader, fault in (
        ("nothing", "mlx_vlm", "mlx_vlm does not know model_type 'nothing'; This is mlx-vlm"),
        ("nothing", "", "mlx_vlm and mlx_lm do not know model_type 'nothing'; This is mlx-lm"),
    ):
        path = folder / "config.json"
        changes = {"model_type": model_type, "text_config": {"model_type": "nothing_text"}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        with pytest.raises(MintError, match=fault):
            mint.open_source(folder, loader=loader)


@pytest.mark.parametrize(("model_type", "loader"), [("idefics3", "mlx_lm"), ("nothing", "")])
def test_the_text_model_of_a_family_that_mlx_lm_does_not_know_is_written_alone(
    model_type: str, loader: str, tmp_path: Path
) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
    result = mint.quantize(folder, "max", tmp_path / "out", mint.Recipe(loader=loader))
    assert result.verification.passed
    assert any(notice.startswith("text only: mlx_lm drops the vision tower") for notice in result.notices)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama" and not config.keys() & {"text_config", "vision_config"}


@pytest.mark.parametrize("family", ["moondream2", "moondream3"])
def test_a_language_model_by_another_name_is_no_tower(family: str, tmp_path: Path) -> None:
    """Moondream's class holds it as `text`."""
    source = mint.open_source(write_vision_family(family, tmp_path / "model"))
    assert all((unit.role == TOWER) != unit.path.startswith("text.") for unit in source.units)
    assert {unit.role for unit in source.units} == {TOWER, "embedding", "head", "qkv", "o", "up", "down"}


def test_the_language_model_of_a_class_is_one_of_its_parts_or_none() -> None:
    whole, apart = Module(), Module()
    apart.text = Module()
    apart.language_model = apart.text
    whole.__dict__["language_model"] = whole  # as that of Molmo Point; Phi 3 vision has none
    assert language_path(apart) in ("text", "language_model")
    assert language_path(whole) == language_path(Module()) == ""  # such a class is refused by name


def test_a_siglip_tower_of_transformers_5_opens_without_its_pooling_and_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_vision_family("paligemma", tmp_path / "model")
    units = [unit.path for unit in mint.open_source(folder).units]
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    newer = {name.replace("vision_tower.vision_model.", "vision_tower."): tensor for name, tensor in tensors.items()}
    assert newer.keys() != tensors.keys()
    write_tensors(path, newer | {"vision_tower.head.probe": ("F32", np.ones((1, 1, 64), np.float32))})
    assert [unit.path for unit in mint.open_source(folder).units] == units
    write_tensors(path, {name: tensor for name, tensor in newer.items() if "down_proj" not in name})
    with pytest.raises(MintError, match="do not fit"):
        mint.open_source(folder)
    assert caplog.records == []  # names that are tried in vain would be warnings
