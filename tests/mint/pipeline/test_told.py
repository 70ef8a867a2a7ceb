"""Results say everything that is true of them: dropped towers, matrices that stay, limits that bind."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mint
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.core.sizes import parse_size
from mint.formats.format import KEEP
from mint.formats.units import KEEP_BITS
from mint.model.checkpoint.manifest import read_manifest
from mint.model.source import open_source
from mint.plan.device_fit import fit_rows
from mint.plan.recipe import Recipe, Room
from mint.plan.size_range import possible_bytes
from mint.render.models import source_record
from mint.render.plans import plan_record
from mint.targets.devices import device
from tools.models.families import write_family

Make = Callable[..., Path]


def multimodal(make_model: Make, **config: Any) -> Path:
    """A text model with a vision tower beside it, and everything that a folder of the hub has."""
    folder = make_model("llama4")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"vision_model.patch_embedding.weight": np.zeros((8, 8), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "vision_config": {"a": 1}, "audio_config": {}, **config})
    )
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text("{}")
    for name in (
        "LICENSE",
        "NOTICE.txt",
        "USE_POLICY.md",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    for name in ("trainer_state.json", "training_args.json", "train.jsonl", "all_results.json", "optimizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_result_without_its_tower_says_so_everywhere_and_bears_no_trace_of_it(
    make_model: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, output = multimodal(make_model), tmp_path / "out"
    options = ["--budget", "max", "--output", str(output), "--text-only", "--json"]
    assert run_command(["quantize", str(folder), *options]) == 0
    out, err = capfd.readouterr()
    assert "text only: mlx_lm drops the vision tower (5 tensors, " in err
    record = json.loads(out)
    assert record["dropped_towers"] == ["vision"]
    assert any("text only" in notice for notice in record["notices"])
    assert read_manifest(output).dropped_towers == ("vision",) == mint.read_plan(output).dropped_towers
    assert "Text only: the vision tower" in (output / "README.md").read_text()
    config = json.loads((output / "config.json").read_text())
    assert not {"vision_config", "audio_config"} & config.keys()
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {"LICENSE", "NOTICE.txt", "USE_POLICY.md", "chat_template.jinja"} <= names
    assert "additional_chat_templates/tool.jinja" in names
    assert not [name for name in names if "processor" in name or "train" in name or "optimizer" in name]
    assert "additional_chat_templates/tool.jinja" in read_manifest(output).files


def test_a_head_that_a_tied_model_drops_is_compared_with_its_embedding(make_model: Make) -> None:
    folder = make_model("llama", tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert open_source(folder).notices == ()
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    (notice,) = open_source(folder).notices
    assert "lm_head.weight differs from model.embed_tokens.weight" in notice


def narrow(make_model: Make) -> Path:
    """A model whose attention has axes of 40, which no group divides."""
    folder = make_model("llama")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = load_file(folder / "model.safetensors")
    for name, array in tensors.items():
        if "q_proj" in name or "k_proj" in name or "v_proj" in name:
            tensors[name] = np.ascontiguousarray(array[: heads["q_proj" not in name] * 10])
        if "o_proj" in name:
            tensors[name] = np.ascontiguousarray(array[:, : heads[0] * 10])
    save_file(tensors, folder / "model.safetensors")
    path.write_text(json.dumps({**config, "head_dim": 10}))
    return folder


def test_matrices_that_stay_are_listed_with_bytes_and_reason(
    make_model: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = narrow(make_model)
    assert run_command(["inspect", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    stays = [unit for unit in open_source(folder).units if unit.stays]
    (row,) = record["kept"]
    assert row == {
        "matrices": "model.layers.*.self_attn.o_proj", "count": len(stays), "nbytes": sum(u.nbytes for u in stays),
        "reason": f"no group size divides its last axis ({stays[0].shape[-1]})",
    }  # fmt: skip
    assert record["kept_units"].keys() == {unit.path for unit in stays}


def test_the_refusal_of_a_budget_names_what_binds_and_what_stays(make_model: Make, tmp_path: Path) -> None:
    analysis = mint.analyze(open_source(narrow(make_model)), tmp_path / "a.mint")
    plan = Recipe(veto_db=-20).problem(analysis).plan(10**9)
    (row,) = plan_record(plan, None, 0.0)["kept"]
    assert row["reason"].startswith("kept: no group size divides")
    with pytest.raises(
        MintError, match=r"too small.*matrices of .* stay as they are: .*o_proj \(.*no group size divides"
    ):
        Recipe(veto_db=-20).problem(analysis).plan(1000)
    with pytest.raises(MintError, match=r"relax what binds: without the veto of 60 dB \(veto_db\) it is "):
        Recipe(veto_db=60).problem(analysis).plan(1000)
    with pytest.raises(MintError, match=r"relax what binds: without the formats set or kept \(lock\) it is "):
        Recipe(veto_db=-20, lock=("*.down_proj=8/32",)).problem(analysis).plan(1000)
    with pytest.raises(MintError, match=r"relax what binds: without min_bits 6 it is "):
        Recipe(veto_db=-20, min_bits=6).problem(analysis).plan(1000)


def test_a_budget_that_the_veto_may_forbid_is_doubted_before_the_analysis(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    smallest, _ = possible_bytes(source.units, source.parameters)  # with a veto of 9 dB
    events: list[str] = []
    with pytest.raises(MintError, match="too small"):
        mint.quantize(
            llama, smallest + 1000, tmp_path / "out", Recipe(veto_db=15),
            on_note=events.append, on_progress=lambda step: events.append(step.stage),
        )  # fmt: skip
    (doubt,) = [event for event in events if "may be too small" in event]
    assert "by the headers alone, and up to " in doubt
    assert "with the veto of 15 dB (--veto)" in doubt
    assert "analyze" not in events[: events.index(doubt)]
    mint.quantize(llama, "8bpw", tmp_path / "out", on_note=events.append)
    assert len([event for event in events if "may be too small" in event]) == 1


def test_the_size_that_a_refusal_offers_is_enough_as_it_is_printed(llama: Path, tmp_path: Path) -> None:
    folder, analysis = tmp_path / "out", tmp_path / "a.mint"
    measured = mint.analyze(mint.open_source(llama), analysis, rounding="nearest")
    for veto_db, relaxed_db in ((9.0, -inf), (15.0, -inf), (-20.0, -20.0)):
        recipe = Recipe(rounding="nearest", veto_db=veto_db)
        with pytest.raises(MintError, match="too small") as refused:
            recipe.problem(measured).plan(1000)
        offered = re.search(r"smallest that works is \d+ bytes \((.*?)\)", str(refused.value))
        assert offered
        assert mint.allocate(measured, offered[1], recipe).planned_bytes <= parse_size(offered[1])
        relaxed = re.search(r"without the veto of .*? it is ([\d.]+ \w+)", str(refused.value))
        assert bool(relaxed) == (relaxed_db != veto_db)
        if relaxed:
            mint.allocate(measured, relaxed[1], replace(recipe, veto_db=relaxed_db))
        # the same size is named by every message of a command line
        notes: list[str] = []
        for budget in (1000, parse_size(offered[1]) - 1000):
            with pytest.raises(MintError, match=re.escape(offered[1])):
                mint.quantize(llama, budget, folder, recipe, analysis=analysis, on_note=notes.append)
        assert not notes


@pytest.mark.parametrize("veto_db", [9.0, -20.0])
def test_the_headers_tell_the_smallest_size_without_the_veto_and_at_most_with_it(
    llama: Path, tmp_path: Path, veto_db: float
) -> None:
    recipe = Recipe(rounding="nearest", veto_db=veto_db)
    with pytest.raises(MintError, match="too small") as refused:
        mint.quantize(llama, "10kB", tmp_path / "out", recipe)
    sizes = [parse_size(size) for size in re.findall(r"(?:takes|up to) ([\d.]+ kB)", str(refused.value))]
    problem = recipe.problem(mint.analyze(mint.open_source(llama), tmp_path / "a.mint", rounding="nearest"))
    free = replace(recipe, veto_db=-inf).problem(problem.analysis)
    assert len(sizes) == (2 if veto_db > 0 else 1)
    assert 0 <= sizes[0] - free.smallest_bytes < free.smallest_bytes / 500
    assert sizes[-1] >= problem.smallest_bytes
    assert "--" not in str(refused.value).partition("Raise the budget")[2]


def test_inspect_names_sizes_that_quantize_reaches(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    record = source_record(source, "llama")
    analysis = mint.analyze(source, tmp_path / "a.mint", rounding="nearest")
    assert mint.allocate(analysis, record["smallest_bytes"]).planned_bytes <= record["smallest_bytes"]
    rows = fit_rows(source, device("m4-16"), Room())
    assert rows[0]["nbytes"] == record["smallest_bytes"]


def test_a_floor_of_the_model_binds_until_the_rules_ignore_it(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("qwen3_moe"))
    analysis = mint.analyze(source, tmp_path / "a.mint")
    floors = [unit.path for unit in source.units if unit.min_bits == 8]
    with pytest.raises(MintError, match=r"without the floors of the model or of roles \(ignore_floors\) it is "):
        Recipe(veto_db=-20).problem(analysis).plan(1000)
    bound, free = (Recipe(veto_db=-20, ignore_floors=floors) for floors in ((), ("*.gate",)))
    assert free.problem(analysis).smallest_bytes < bound.problem(analysis).smallest_bytes
    plan = free.problem(analysis).plan(free.problem(analysis).smallest_bytes)
    assert {choice.format.bits for choice in plan.choices if choice.path in floors} == {2}
    assert not any("own rule" in choice.reason for choice in plan.choices)
    mint.write_plan(plan, tmp_path / "plan.json")
    assert mint.read_plan(tmp_path / "plan.json") == plan
    locked = Recipe(lock=("*.gate=4/64",))
    with pytest.raises(MintError, match="ignore its floor with ignore_floors"):
        locked.problem(analysis)
    Recipe(lock=("*.gate=4/64",), ignore_floors=("*.gate",)).problem(analysis)
    with pytest.raises(MintError, match="matches no unit"):
        Recipe(ignore_floors=("*.nothing",)).problem(analysis)


@pytest.mark.parametrize("family", ["bailing_moe_v3", "bailing_hybrid"])
def test_units_that_the_class_does_not_quantize_are_kept_until_the_rules_ignore_that(
    family: str, tmp_path: Path
) -> None:
    """mlx_lm asks the class when it quantizes; what it loads is what the written config and tensors say."""
    source = open_source(write_family(family, tmp_path / "model"), loader="mlx_lm")
    kept = {unit.path for unit in source.units if unit.min_bits == KEEP_BITS}
    assert kept
    record = source_record(source, "model")
    assert all("--ignore-floors PATTERN waives that" in record["kept_units"][path] for path in kept)
    assert record["floors"].keys().isdisjoint(kept)
    analysis = mint.analyze(source, tmp_path / "a.mint")
    problem = Recipe(veto_db=-20).problem(analysis)
    plan = problem.plan(problem.smallest_bytes)
    assert {choice.format for choice in plan.choices if choice.path in kept} == {KEEP}
    path = min(kept)
    with pytest.raises(MintError, match="ignore its floor with ignore_floors"):
        Recipe(lock=(f"{path}=4/32",)).problem(analysis)
    waived = Recipe(veto_db=-20, ignore_floors=tuple(kept)).problem(analysis)
    plan = waived.plan(waived.smallest_bytes)
    quantized = {choice.path for choice in plan.choices if choice.path in kept and choice.format != KEEP}
    assert quantized
    mint.assemble(plan, source, tmp_path / "out")
    assert mint.verify(tmp_path / "out", source).passed
