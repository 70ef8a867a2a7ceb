"""Mistakes of newcomers: each gets one message with what was found, what is needed and the command that helps."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mint.cli.main import run_command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A folder with a path of every kind."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(llama, folder / "tiny")
    (folder / "empty").mkdir()
    (folder / "notes.md").write_text("# Notes")
    shutil.copytree(llama, folder / "uniform")
    config = json.loads((llama / "config.json").read_text())
    (folder / "uniform" / "config.json").write_text(
        json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}})
    )
    files = {name: str(folder / name) for name in ("tiny", "a.mint", "plan.json", "out")}
    for words in (
        ["analyze", files["tiny"], "-o", files["a.mint"]],
        ["allocate", files["a.mint"], "-b", "400kB", "-o", files["plan.json"]],
        ["assemble", files["plan.json"], "-m", files["tiny"], "-o", files["out"]],
    ):
        assert run_command(words) == 0
    return folder


def complaint(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run_command(line.split()) in (1, 2)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert not shown.out
    return " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("quantize nowhere -b 400kB", "no such folder"),
        ("quantize empty -b 400kB", "no config.json found"),
        ("analyze empty -o n.mint", "no config.json found"),
        ("evaluate out --reference nowhere", "no such model"),
        ("inspect nowhere", "no such folder"),
        (
            "quantize tiny -b 400kB -o out --quality good",
            "out exists; nothing is ever overwritten (it was made with --quality fast",
        ),
        ("quantize tiny -b 300kB -o out", "out exists; nothing is ever overwritten (it is of the budget 400 kB)"),
        ("quantize tiny -b 400kB -o tiny", "tiny exists"),
    ],
)
def test_a_wrong_folder_is_refused_before_mlx_is_imported(world: Path, line: str, found: str) -> None:
    code = (
        "import sys; from mint.cli.main import run_command; code = run_command(sys.argv[1:]); "
        "print('mlx.core' in sys.modules, code)"
    )
    environment = {**os.environ, "MINT_QUALITY": "fast"}
    command = [sys.executable, "-c", code, *line.split()]
    done = subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True, check=True)
    assert found in done.stderr
    assert done.stdout.split() == ["False", "1"]


@pytest.mark.parametrize(
    ("line", "found", "needed"),
    [
        ("allocate tiny -b 400kB", "it is a model;", "mint analyze tiny makes its analysis tiny.mint"),
        ("allocate out -b 400kB", "it is a model that mint wrote", "mint show out"),
        ("allocate plan.json -b 400kB", "it is a plan", "a file that `mint analyze` wrote"),
        ("curve empty", "it is an empty folder", "a file that `mint analyze` wrote"),
        ("explain a.mint", "it is an analysis", "mint allocate a.mint --budget SIZE"),
        ("diff plan.json a.mint", "it is an analysis", "needed: a plan"),
        ("assemble a.mint -m tiny -o n", "it is an analysis", "needed: a plan"),
        ("show tiny", "it is a model;", "mint quantize tiny"),
        ("show tiny/config.json", "it is a file of the model in", "needed: a plan"),
        ("show nowhere", "no such file or folder", "an analysis, a plan or a folder that mint wrote"),
        ("report tiny", "it is a model;", "mint quantize tiny"),
        ("show uniform", "it is a quantized model;", "mint evaluate uniform --reference ORIGINAL"),
        ("report uniform", "it is a quantized model;", "mint evaluate uniform --reference ORIGINAL"),
        ("show notes.md", "not a plan", "a folder that mint wrote"),
        ("evaluate notes.md --reference tiny", "it is a file", "the folder of an MLX model"),
        ("quantize tiny --device MacBook-Air", "is not a known device", "its chip and memory"),
        ("quantiz tiny", "Did you mean 'quantize'? See ", "mint quantize MODEL"),
        ("quantize tiny -b 1kB -o n", "too small", "smallest"),
        ("verify nowhere", "no such folder", "a folder that mint wrote"),
        ("verify tiny", "no mint.json found", "a folder that mint wrote"),
        ("inspect a.mint", "it is an analysis", "the folder of a Hugging Face model"),
        ("inspect plan.json", "it is a plan", "mint assemble plan.json"),
        ("inspect tiny/model.safetensors", "it is a file of the model in", "the folder of a Hugging Face model"),
        ("quantize Qwen3-8B -b 400kB", "no such folder", "an id of the hub, such as OWNER/Qwen3-8B"),
        ("analyze tiny -o empty", "it is an empty folder", "the name of a file"),
        ("quantize tiny -b 400kB -o n --analysis plan.json", "it is a plan", "the name of a file"),
        ("quantize tiny -b 400kB -o n --reuse nowhere", "no such folder", "a folder that mint wrote"),
        ("quantize tiny -b 400kB -o tiny/out", "tiny/out is inside tiny", "elsewhere"),
        ("inspect tiny --budget 4GB", "No such option", "needs no budget"),
        ("analyze tiny --budget 4GB", "No such option", "--budget is an option of mint quantize"),
        ("curve a.mint --device m4-16", "No such option", "--device is an option of mint quantize, mint inspect"),
        ("allocate a.mint -b 1MB --model tiny", "No such option", "mint assemble PLAN --model MODEL"),
        ("quantize tiny -b 400kB --rounding gptq", "found 'gptq'", "--rounding compensate is mint's GPTQ"),
        ("quantize tiny -b 400kB --rounding=dwq", "found 'dwq'", "--rounding tune is mint's DWQ"),
        ("tiny --budget 4GB", "No such command", "mint quantize MODEL --budget SIZE"),
        ("run out", "No such command", "mlx_lm.chat --model OUT"),
        ("list", "No such command", "mint devices"),
    ],
)
def test_a_mistake_is_named_with_what_is_needed(
    line: str, found: str, needed: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    message = complaint(line, capsys)
    assert found in message
    assert needed in message
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize("name", ["build/nope", "./build/nope", "../here/build/nope", "{}/build/nope", "~/build/nope"])
@pytest.mark.parametrize("command", ["inspect {}", "quantize {} -b 4bpw", "evaluate {} --reference tiny"])
def test_a_path_that_does_not_exist_is_no_model_of_the_hub(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    for folder in ("nopes", "other"):
        (here / "build" / folder).mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    message = complaint(command.format(name.format(here)), capsys)
    assert "build/nope: no such folder" in message
    assert "there is: nopes" in message
    assert "other" not in message
    assert "cache" not in message
    assert ("A model of the hub: https://huggingface.co/build/nope" in message) == (
        name in ("build/nope", "./build/nope")
    )


def test_a_hint_is_about_what_the_command_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the model is the first argument" not in complaint("assemble plan.json -m tiny", capsys)


@pytest.mark.parametrize(
    ("budget", "meaning"),
    [
        ("4bit", "4.5bpw, the size of uniform 4-bit"), ("q4_k_m", "4.5bpw"), ("30%", "0.30x"), ("5%", "0.05x"),

        ("90MB-110MB", "110MB: a budget is the most"),
        ("minimum", "Perhaps you mean min"), ("4,5GB", "4.5GB"), ("4GB,6GB", "4GB and 6GB, each"),
    ],
)  # fmt: skip
def test_a_budget_in_other_words_is_translated(budget: str, meaning: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert meaning in complaint(f"allocate a.mint --budget {budget}", capsys)


@pytest.mark.parametrize(
    "line",
    [
        "quantize uniform -b 1kB", "quantize notes.md -b 1kB", "quantize tiny -b 400kB -o out --quality good",
        "analyze notes.md", "probe notes.md", "assemble plan.json -m notes.md -o n", "verify tiny",
    ],
)  # fmt: skip
def test_what_is_refused_is_not_announced(
    line: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of an output that will not be written confuses."""
    monkeypatch.chdir(world)
    assert complaint(line, capsys).startswith("mint: ")


def test_an_empty_name_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["quantize", "", "--budget", "4GB"]) == 1
    assert "the name of the model is empty" in capsys.readouterr().err


def test_the_default_output_of_the_current_folder_lies_beside_it(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world / "tiny")
    assert run_command(["quantize", ".", "--budget", "10kB"]) == 1
    assert f"-> {world / 'tiny-10kB'}" in capsys.readouterr().err


def test_a_budget_with_room_for_the_whole_model_is_noted(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    for options, is_noted in (
        (["-b", "10GB"], True),
        (["--device", "m4-16"], True),
        (["-b", "max"], False),
        (["-b", "400kB"], False),
        (["-b", "10GB", "--max-bits", "8"], False),
    ):
        assert run_command(["quantize", "tiny", *options, "--dry-run"]) == 0
        assert ("has room for the whole model" in capsys.readouterr().err) == is_noted


def test_a_context_of_the_settings_file_is_for_devices_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path))
    (tmp_path / "mint.toml").write_text('[allocate]\ncontext = "32k"\n')
    monkeypatch.chdir(world)
    assert run_command(["allocate", "a.mint", "--budget", "400kB"]) == 0
    assert "are for --device" in complaint("allocate a.mint --budget 400kB --context 16k", capsys)
