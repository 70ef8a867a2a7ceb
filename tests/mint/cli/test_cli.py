import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mint.cli.main import run_command
from mint.quality.verdict import kl_text
from tests.worlds.encodings import quantized, write_encoded


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = run_command([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    record: dict[str, Any] = json.loads(captured.out)
    return record


def test_each_verb_hands_its_file_to_the_next(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspected = _json(capsys, "inspect", str(llama))
    assert inspected["smallest_bytes"] < inspected["largest_bytes"]
    assert inspected["units"] == sum(role["units"] for role in inspected["roles"])
    analysis, plan, output = (str(tmp_path / name) for name in ("a.mint", "plan.json", "out"))
    assert _json(capsys, "analyze", str(llama), "--output", analysis)["units"] == inspected["units"]
    budget = f"{inspected['largest_bytes'] // 2}B"
    allocated = _json(capsys, "allocate", analysis, "--budget", budget, "--output", plan)
    names = {"budget_bytes", "planned_bytes", "loss", "bound", "gap", "bits_per_weight", "seconds"}
    assert names <= set(allocated)
    assembled = _json(capsys, "assemble", plan, "--model", str(llama), "--output", output)
    assert assembled["weight_bytes"] == allocated["planned_bytes"] <= allocated["budget_bytes"]
    verified = _json(capsys, "verify", output, "--model", str(llama))
    assert verified["passed"]
    assert "errors" in [check["check"] for check in verified["checks"]]


def test_quantize_reports_what_machines_need(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "quantize", str(llama), "--budget", "400kB", "--output", str(tmp_path / "out"))
    assert record["output"] == str(tmp_path / "out")
    assert record["weight_bytes"] == record["planned_bytes"] <= record["budget_bytes"] == 400_000
    assert set(record["seconds"]) == {"analyze", "allocate", "assemble", "verify"}
    assert {"bits_per_weight", "loss", "bound", "gap", "peak_rss_bytes", "verified"} <= set(record)


def test_people_get_few_lines_and_every_detail_on_request(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run_command(["quantize", str(llama), "--budget", "400kB", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    labels = ["model", "size", "bits", "closeness", "4-bit", "next", "speed"]
    assert [line.split()[0] for line in shown.splitlines()] == labels
    assert "of 400 kB" in shown
    assert f"not measured; needed: mint evaluate {output} --reference {llama}" in shown
    assert f"; to compare: mlx_lm.convert --hf-path {llama} -q --mlx-path 4bit" in shown
    assert "predicted" not in shown  # by default sensitivities, which are right to a factor of 32
    assert f"mlx_lm.generate --model {output}" in shown  # a chat takes minutes on a CPU
    assert run_command(["show", str(output), "--verbose"]) == 0
    details = capsys.readouterr().out
    assert "share" in details
    assert "objective" in details
    assert _json(capsys, "show", str(output))["kind"] == "model"


def test_uniform_4_bit_is_shown_as_it_was_measured(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    request = ["quantize", str(llama), "--budget", "400kB", "--quality", "good", "--output", str(output)]
    record = _json(capsys, *request)
    uniform = record["uniform"]
    assert uniform["text"] == record["closeness"]["text"]
    assert _json(capsys, "show", str(output))["uniform"] == uniform
    assert run_command(["show", str(output)]) == 0
    kl = kl_text(uniform["kl"]["value"])
    words = " ".join(capsys.readouterr().out.split())
    top1 = f"{uniform['top1']['value']:.0%}"
    assert re.search(rf"would write \S+ kB: KL {kl} \(.*\) measured on the same text, same first word {top1}; ", words)
    assert re.search(r"this model is .*4-bit, in \d+% (more|fewer) bytes|closer, in \d+% (more|fewer) bytes", words)
    assert f"has {kl} (95 % interval" in (output / "README.md").read_text()


def test_a_ruined_model_is_called_so(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = tmp_path / "a.mint"
    assert run_command(["analyze", str(llama), "--output", str(analysis)]) == 0
    assert run_command(["allocate", str(analysis), "--budget", "min", "--veto", "0"]) == 0
    assert "WARNING" in capsys.readouterr().out
    assert run_command(["allocate", str(analysis), "--budget", "max"]) == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["inspect", "nowhere"], "no such folder"),
        (["quantize", "nowhere", "--budget", "90", "--output", "out"], "has no unit"),
        (["quantize", "nowhere", "--budget", "90MB", "--output", "out"], "no such folder"),
        (["allocate", "nowhere.mint", "--budget", "1MB"], "no such analysis"),
        (["assemble", "nowhere.json", "--model", "m", "--output", "out"], "no such plan"),
        (["verify", "nowhere"], "no such folder"),
        (["evaluate", "nowhere", "--reference", "m"], "no such folder"),
    ],
)
def test_an_error_of_the_user_exits_1_with_one_message(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_object_too_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "nowhere", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["exit_code"] == 1
    assert "no such folder" in record["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["quantize"],
        ["quantize", "m", "--budget", "1MB", "--progress", "loud"],
        ["inspect", "m", "--nonsense"],
        ["allocate", "a", "--budget", "1MB", "--veto", "x"],
        ["inspect", "m", "--dtype", "int3"],
        ["evaluate", "m"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    assert capsys.readouterr().err


def test_a_bug_exits_3_with_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(load=lambda: 1 / 0)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [broken])
    assert run_command(["cluster", "--json"]) == 3
    captured = capsys.readouterr()
    assert "ZeroDivisionError" in captured.err
    assert json.loads(captured.out)["exit_code"] == 3


@pytest.mark.parametrize(
    "command",
    ["quantize", "inspect", "analyze", "probe", "allocate", "curve", "explain", "diff", "assemble", "verify",
     "evaluate", "upload", "report", "export-predicate", "show", "devices", "doctor", "config", "submit", "jobs",
     "cancel", "download"],
)  # fmt: skip
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "Usage" in shown


def test_a_failed_verification_exits_1(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run_command(["quantize", str(llama), "--budget", "400kB", "--output", str(output)]) == 0
    (output / "config.json").write_text("{}")
    capsys.readouterr()
    assert run_command(["verify", str(output), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]


def test_a_command_that_another_package_offers_is_one_of_mints(tmp_path: Path) -> None:
    metadata = tmp_path / "own-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mint.commands]\nhello = own_commands:app\n")
    (tmp_path / "own_commands.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef hello(name: str) -> None:\n    print('hello', name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "mint", "hello", "world"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "hello world\n"


def test_every_verb_of_a_quantized_source_needs_the_word(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, quantization = make_model("llama", tokenizer=True), {"group_size": 64, "bits": 4, "mode": "affine"}
    write_encoded(folder, r"_proj\.weight$", quantized(), {"quantization": quantization})
    file, out = str(tmp_path / "a.mint"), str(tmp_path / "out")
    for verb in (["inspect"], ["analyze", "-o", file], ["quantize", "-b", "max", "-o", out]):
        assert run_command([verb[0], str(folder), *verb[1:]]) == 1
        assert "--requantize" in capsys.readouterr().err
        _json(capsys, verb[0], str(folder), *verb[1:], "--requantize")
    plan = str(tmp_path / "plan.json")
    _json(capsys, "allocate", file, "-b", "max", "-o", plan)
    _json(capsys, "assemble", plan, "--model", str(folder), "-o", f"{out}2")  # the plan is of this very model
    assert _json(capsys, "verify", f"{out}2", "--model", str(folder))["passed"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["convert", "--hf-path", "x", "-q"], "mint quantize MODEL --budget 4.5bpw"),
        (["quantize", "m", "--q-bits", "4"], "--budget 4.5bpw"),
        (["quantize", "--hf-path", "m"], "mint quantize MODEL"),
        (["quantize", "m", "--target-bpw", "4"], "needed: --budget 4.5bpw"),
        (["allocate", "a.mint", "--bits", "4"], "--min-bits and --max-bits"),
        (["allocate", "a.mint", "--budget", "m4-pro-24"], "needed: --device m4-pro-24"),
        (["allocate", "a.mint", "--device", "90MB"], "needed: --budget 90MB"),
        (["allocate", "a.mint", "--budget", "4.5"], "4.5bpw"),
        (["allocate", "a.mint", "--budget", "90000000"], "90000000B"),
        (["allocate", "a.mint", "--budget", "90MB", "--context", "32k"], "are for --device"),
        (["submit", "a/b", "--budget", "4GB", "--low-disk"], "mint quantize OWNER/NAME --low-disk --quality fast"),
        (["quantize", "m", "--upload-repo", "a/b"], "needed: --upload OWNER/NAME"),
    ],
)
def test_words_of_neighbours_and_mixed_up_options_get_a_hint(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) in (1, 2)
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--budget", "20kB"], "by the headers alone"),
        (["--budget", "400kB", "--keep", "*.nothing"], "matches no unit"),
        (["--budget", "400kB", "--set", "*.q_proj=4/32", "--keep", "*.q_proj"], "make the patterns disjoint"),
        (["--budget", "400kB", "--output", "/dev/null/x"], "is a file"),
        (["--budget", "400kB", "--output", "a[b]c"], "needed: no [ ]"),
        (["--budget", "400kB", "--locks", "nope.json"], "No such file"),
    ],
)
def test_what_must_fail_fails_before_anything_is_measured(
    llama: Path, arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    analysis = tmp_path / "a.mint"
    assert run_command(["quantize", str(llama), *arguments, *output, "--analysis", str(analysis)]) == 1
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_default_output_lies_beside_the_model_and_force_moves_it_aside(
    make_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tokenizer=True)
    output = model.parent / "model-400kB"
    command = ["quantize", str(model), "--budget", "400kB", "--json"]
    assert _json(capsys, *command[:-1])["output"] == str(output)
    (output / "mint.json").unlink()
    assert run_command(command) == 1
    assert "--force" in capsys.readouterr().err
    assert _json(capsys, *command[:-1], "--force")["output"] == str(output)
    assert (output / "mint.json").exists()
    assert (model.parent / "model-400kB.old").is_dir()


def test_settings_come_from_the_users_file_and_unknown_ones_are_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path))
    file = tmp_path / "mint.toml"
    file.write_text('[inspect]\ndtype = "float32"\n')
    larger = _json(capsys, "inspect", str(llama))["largest_bytes"]
    assert _json(capsys, "inspect", str(llama), "--dtype", "bfloat16")["largest_bytes"] < larger
    assert _json(capsys, "config")["exists"]
    for text in ('[inspect]\nnonsense = "x"\n', '[nonsense]\nx = "y"\n', 'token = "secret"\n', "[["):
        file.write_text(text)
        assert run_command(["inspect", str(llama)]) == 1
        assert str(file) in capsys.readouterr().err


def test_the_doctor_checks_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    checks = {check["check"]: check["verdict"] for check in _json(capsys, "doctor")["checks"]}
    assert {"packages", "processor", "device", "cache", "disk", "memory"} <= set(checks)


def test_values_are_completed(llama: Path) -> None:
    from mint.cli import completion

    assert "m4-pro-24" in completion.devices("m4-p")
    assert completion.roundings("sea") == ["search"]
    assert str(llama) in completion.models(str(llama)[:-2])


def test_help_shows_what_most_people_need_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    headings = ["Make a model", "Choose", "Step by step", "Machines and settings", "a lab's service"]
    assert [shown.index(heading) for heading in headings] == sorted(shown.index(heading) for heading in headings)
    assert run_command(["quantize", "--help"]) == 0
    shown = capsys.readouterr().out
    first = ["--budget", "--device", "--quality", "--output", "--json", "Rules of the plan", "--veto", "--rounding"]
    positions = [shown.index(f"\u2502 {option}" if option[0] == "-" else option) for option in first]
    assert positions == sorted(positions)
    assert "--force <bool>" not in " ".join(shown.split())


def test_inspect_shows_people_what_the_model_has_and_machines_everything(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["inspect", str(llama)]) == 0
    shown = capsys.readouterr().out
    assert "none" not in shown
    assert "tensors beside units" in shown
    record = _json(capsys, "inspect", str(llama))
    assert record["weights"] > sum(role["weights"] for role in record["roles"])
    assert record["notices"] == []
