"""The card of a written model: valid metadata of the hub, carried over from the source, and what was made."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.cli.main import run_command
from mint.exports.card import card_text, quantize_command, recipe_record
from mint.exports.source_card import SourceCard, read_source_card
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.prediction import Evidence
from mint.plan.recipe import Recipe
from mint.quality.closeness import Closeness
from mint.quality.estimates import Estimate

Make = Callable[..., Path]
CARD = """---
license: other
license_name: tiny-licence
license_link: LICENSE
language: [en, de]
tags:
- chat
- mlx
base_model: someone/base
datasets: [secret]
---
# The original's text
"""


@pytest.fixture
def source_folder(make_model: Make) -> Path:
    """A model with a card and a licence."""
    folder = make_model("llama", tokenizer=True)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "NOTICE").write_text("Made by someone.")
    return folder


def _plan(folder: Path, recipe: Recipe = Recipe(veto_db=-100.0)) -> Plan:  # noqa: B008, it is frozen
    return allocate(analyze(open_source(folder), folder.parent / "a.mint"), "0.5x", recipe)


def _written(folder: Path, output: Path) -> Path:
    assemble(_plan(folder), open_source(folder), output)
    return output


def test_metadata_and_terms_of_the_source_are_carried_over(source_folder: Path, tmp_path: Path) -> None:
    output = _written(source_folder, tmp_path / "out")
    card = ModelCard.load(output / "README.md")
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "tiny-licence", "LICENSE")
    assert card.data.language == ["en", "de"]
    assert card.data.base_model == "someone/base"
    assert card.data.tags == ["chat", "mlx", "mint"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("mlx", "text-generation")
    assert "The original's text" not in card.text
    assert (output / "LICENSE").read_text() == "Do as you like."
    assert (output / "NOTICE").read_text() == "Made by someone."


def test_metadata_is_what_the_hub_s_library_writes(source_folder: Path, tmp_path: Path) -> None:
    (source_folder / "README.md").write_text(CARD.replace("tiny-licence", "Lizenz für é"))
    text = (_written(source_folder, tmp_path / "out") / "README.md").read_text()
    metadata = metadata_load(tmp_path / "out" / "README.md")
    assert metadata is not None
    assert text.startswith(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n")


def test_a_model_of_the_hub_is_its_own_base_model(source_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--Tiny-1B" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    source_folder.rename(snapshot)
    card = ModelCard.load(_written(snapshot, tmp_path / "out") / "README.md")
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("owner/Tiny-1B", "quantized")
    assert "# Tiny-1B, " in card.text
    assert "mint quantize owner/Tiny-1B --budget" in card.text


@pytest.mark.parametrize("text", ["", "no metadata", "---\n: [\n---\n", "---\n- a list\n---\n", "---\ntags: 3\n---\n"])
def test_a_missing_or_damaged_card_says_nothing(text: str, source_folder: Path) -> None:
    (source_folder / "README.md").write_text(text)
    assert read_source_card(source_folder) == SourceCard("model")
    (source_folder / "README.md").unlink()
    assert read_source_card(source_folder) == SourceCard("model")


def test_the_card_tells_what_was_made_and_how(source_folder: Path, tmp_path: Path) -> None:
    plan = _plan(source_folder, Recipe(veto_db=-100.0, lock=("*.q_proj=6/64",), min_bits=3))
    closeness = Closeness(Estimate(0.02, 0.015, 0.03), Estimate(0.9, 0.8, 0.95), 8, 1024, "of its own")
    text = card_text(plan, read_source_card(source_folder), closeness, "text-generation")
    for part in (
        "KL divergence from the original, in nats per token: 0.02 (95 % interval 0.015 to 0.03), very close",
        "the same 90.0% of the time", "Measured on 1024 tokens of its own", "mlx_lm.chat --model MODEL",
        "mlx_lm.server --model MODEL", "mlx-swift", "LM Studio", f"{plan.planned_bytes:,} bytes", "| q | ", "6/64 (",
        "--veto -100.0 --min-bits 3 --set '*.q_proj=6/64'",
    ):  # fmt: skip
        assert part in text
    unmeasured = card_text(plan, SourceCard("model"), None, "text-generation")
    assert "Not measured. `mint evaluate" in unmeasured  # the default sensitivities tell nothing
    sure = replace(plan, evidence=Evidence(probed=1.0, sequences=8, spread=0.01))
    told = card_text(sure, SourceCard("model"), None, "text-generation")
    assert re.search(
        r"Not measured. From the errors of its weights: .*KL \S+ predicted, within a factor of [123]", told
    )
    uniform = Closeness(Estimate(0.2, 0.1, 0.3), closeness.top1, 8, 1024, "of its own")
    beside = card_text(plan, SourceCard("model"), closeness, "text-generation", uniform)
    assert "`mlx_lm.convert -q` writes it (" in beside and "has 0.2 (95 % interval 0.1 to 0.3) on the same" in beside
    at_the_border = Closeness(Estimate(0.0504, 0.042, 0.06), closeness.top1, 8, 1024, "of its own")
    text = card_text(plan, SourceCard("model"), at_the_border, "text-generation")
    assert "0.05 (95 % interval 0.042 to 0.06), between very close and close to the original" in text


def test_the_command_of_the_card_makes_the_same_plan(source_folder: Path, tmp_path: Path) -> None:
    plan = _plan(source_folder, Recipe(rounding="nearest", veto_db=-20.0, lock=("*.q_proj=6/64",)))
    command = quantize_command(plan, SourceCard(str(source_folder))).split()[1:]
    command = [word.strip("'") for word in command]
    assert run_command([*command, "--output", str(tmp_path / "again"), "--progress", "none"]) == 0
    again = json.loads((tmp_path / "again" / "mint.json").read_text())
    assert again["plan"] == plan.digest


@pytest.mark.parametrize(("rounding", "option"), [("compensate", "--quality good"), ("search", "--rounding search")])
def test_the_command_of_the_card_names_a_quality_where_there_is_one(
    rounding: str, option: str, source_folder: Path
) -> None:
    plan = replace(_plan(source_folder, Recipe()), rounding=rounding)
    command = quantize_command(plan, SourceCard("model"))
    assert option in command
    assert ("--ignore-probe" in command) == (rounding == "compensate"), "it would probe, and this plan did without"
    assert "--probe" not in command.split()


def test_the_card_may_be_edited_or_removed(source_folder: Path, tmp_path: Path) -> None:
    output = _written(source_folder, tmp_path / "out")
    (output / "README.md").write_text("My own words.")
    assert verify(output).passed
    (output / "README.md").unlink()
    assert verify(output).passed


def test_show_knows_whether_a_folder_was_verified(
    source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _written(source_folder, tmp_path / "out")

    def shown() -> bool:
        assert run_command(["show", str(output), "--json"]) == 0
        return bool(json.loads(capsys.readouterr().out)["verified"])

    assert not shown()
    assert verify(output).passed
    assert shown()
    (output / "tokenizer.json").write_text("{}")
    assert not shown()
    assert not verify(output).passed
    assert not shown()


def test_the_recipe_has_plain_values_only(source_folder: Path) -> None:
    record = recipe_record(_plan(source_folder), None)
    assert all(isinstance(value, str | int | float) for value in record.values())
