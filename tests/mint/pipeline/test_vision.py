"""A multimodal model keeps its towers, and stock mlx_vlm answers about pictures with the result."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
import numpy as np
import numpy.typing as npt
import pytest
from mlx_vlm.utils import load_model
from PIL import Image

import mint
from mint.assembly.agreement import misread_tower
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.formats.format import KEEP, parse_format
from mint.model.checkpoint.manifest import read_manifest
from mint.model.module_tree import load_stock
from mint.model.passes.logits import logits_of
from mint.model.roles import TOWER
from mint.quality.forward import open_wide
from mint.quality.sequences import TextSize
from tests.worlds.pictures import FAMILIES, picture_inputs, write_multimodal, write_processor

pytestmark = pytest.mark.usefixtures("vision")


def pictured(folder: Path, family: str) -> npt.NDArray[np.float32]:
    """The logits of stock mlx_vlm after a prompt with a picture."""
    return np.array(load_model(folder)(**picture_inputs(family)).logits.astype(mx.float32))


def distance(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_mlx_vlm_sees_the_same_picture_with_the_result(family: str, tmp_path: Path) -> None:
    folder = write_multimodal(family, tmp_path / "model")
    expected = pictured(folder, family)
    for budget, limit in (("max", 0.0), ("0.75x", 0.1)):
        result = mint.quantize(folder, budget, tmp_path / budget)
        assert result.verification.passed
        assert distance(pictured(result.output, family), expected) <= limit
    towers = {choice.format.bits for choice in result.plan.choices if choice.role == TOWER}
    assert towers <= {8, KEEP.bits}
    assert 8 in towers
    detail = {check.name: check.detail for check in result.verification.checks}
    assert detail["loads"] == "mlx_vlm loads it (there is no tokenizer to load)"
    manifest, config = read_manifest(result.output), json.loads((result.output / "config.json").read_text())
    assert (manifest.dropped_towers, result.plan.dropped_towers, result.plan.loader) == ((), (), "mlx_vlm")
    assert manifest.versions["mlx-vlm"] == mlx_vlm.__version__  # its classes decide what is measured
    assert "vision_config" in config
    assert (result.output / "preprocessor_config.json").exists()
    card = (result.output / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "Text only" not in card


def answer(folder: Path, seed: int) -> list[int]:
    """The tokens that `mlx_vlm.generate` answers about a random picture."""
    model, processor = mlx_vlm.load(str(folder))
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))
    pixels = mx.array(np.array(processor.image_processor(picture)["pixel_values"]))
    tokens = mx.array([processor.tokenizer.encode("what is <image> <image> <image> <image> w9")])
    inputs = {"input_ids": tokens, "pixel_values": pixels, "mask": mx.ones_like(tokens)}
    result: list[int] = mlx_vlm.generate(model, processor, "", **inputs, max_tokens=12, temperature=0.0).token_ids
    return result


def test_mlx_vlm_answers_about_a_picture_as_the_source_does(tmp_path: Path) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    write_processor(folder)
    result = mint.quantize(folder, "max", tmp_path / "out")
    assert {"processor_config.json", "preprocessor_config.json"} <= {path.name for path in result.output.iterdir()}
    assert "mlx_vlm.load loads it" in [check.detail for check in result.verification.checks]
    assert answer(result.output, 0) == answer(folder, 0) != answer(folder, 1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_compensated_rounding_walks_through_the_language_model(family: str, tmp_path: Path) -> None:
    source = mint.open_source(write_multimodal(family, tmp_path / "model"))
    tokens = mx.array(np.random.default_rng(0).integers(7, 256, (8, 32)))
    expected, errors = np.array(logits_of(open_wide(source.folder), tokens)), {}
    for rounding in ("nearest", "compensate"):
        analysis = mint.analyze(source, tmp_path / f"{rounding}.mint", rounding=rounding)
        problem = mint.Recipe(lock=("language_model.model.layers.*=3/64",)).problem(analysis)
        plan, output = problem.plan(problem.largest_bytes), tmp_path / rounding
        mint.assemble(plan, source, output, text=TextSize(8, 48))
        assert mint.verify(output, source).passed
        errors[rounding] = distance(np.array(logits_of(open_wide(output), tokens)), expected)
    assert errors["compensate"] < 0.95 * errors["nearest"]


def test_the_text_model_alone_bears_no_trace_of_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, output = write_multimodal("gemma3", tmp_path / "model"), tmp_path / "out"
    options = ["--budget", "max", "--output", str(output), "--json"]
    assert run_command(["quantize", str(folder), *options, "--text-only"]) == 0
    out, err = capfd.readouterr()
    assert "text only: mlx_lm drops the vision tower" in err
    assert json.loads(out)["dropped_towers"] == ["vision"]
    assert "vision_config" not in json.loads((output / "config.json").read_text())
    assert not list(output.glob("*processor*"))
    assert mint.read_plan(output).loader == "mlx_lm"
    assert run_command(["verify", str(output), "--model", str(folder)]) == 0


def test_a_plan_keeps_the_towers_that_it_was_made_for(tmp_path: Path) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    plan, output = tmp_path / "plan.json", tmp_path / "out"
    assert run_command(["analyze", str(folder), "--vision", "--output", str(tmp_path / "a.mint")]) == 0
    assert run_command(["allocate", str(tmp_path / "a.mint"), "--budget", "0.6x", "--output", str(plan)]) == 0
    assert run_command(["assemble", str(plan), "--model", str(folder), "--output", str(output)]) == 0
    assert run_command(["verify", str(output), "--model", str(folder)]) == 0
    text = mint.open_source(write_multimodal("gemma3", tmp_path / "gemma"), loader="mlx_lm")
    with pytest.raises(MintError, match="the plan is for another model"):
        mint.assemble(mint.read_plan(plan), text, tmp_path / "other")


def test_the_towers_are_no_part_of_a_probe(tmp_path: Path) -> None:
    folder = write_multimodal("qwen3_vl", tmp_path / "model")
    source = mint.open_source(folder)
    analysis = mint.analyze(source, tmp_path / "a.mint")
    probing = mint.Probing(sequences=2, length=16)
    probed = mint.probe(source, analysis, tmp_path / "a.probe", probing=probing)
    assert all(path.startswith("language_model.") for path in probed.probes)
    assert all(probe.kl > 0 for path, probe in probed.probes.items() if ".layers." in path)


def test_a_tower_that_is_loaded_otherwise_than_stored_fails_the_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = mint.quantize(write_multimodal("llava", tmp_path / "model"), "max", tmp_path / "out")
    model: Any = load_stock(result.output)
    assert misread_tower(model, result.output) == ""
    norm = model.vision_tower.vision_model.post_layernorm
    norm.weight = norm.weight + 1
    assert misread_tower(model, result.output) == "vision_tower.vision_model.post_layernorm.weight"


def test_a_locked_tower_has_its_format(tmp_path: Path) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    recipe = mint.Recipe(lock=("vision_tower.*.mlp.*=4/64",), loader="mlx_vlm")
    assert mint.Recipe.from_dict(recipe.to_dict()) == recipe
    result = mint.quantize(folder, "max", tmp_path / "out", recipe)
    formats = {
        choice.format for choice in result.plan.choices if "vision_tower" in choice.path and "mlp" in choice.path
    }
    assert formats == {parse_format("4/64")}
    assert result.verification.passed


def test_a_processor_that_does_not_load_is_reported(tmp_path: Path) -> None:
    folder = write_multimodal("llava", tmp_path / "model")
    write_processor(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchImageProcessor"}')
    result = mint.quantize(folder, "max", tmp_path / "out")
    assert result.verification.passed  # it is the source's
    assert result.verification.tokenizer_fault.startswith("mlx_vlm does not load the processor (")
