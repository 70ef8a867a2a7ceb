"""The commands that make, draw, explain and compare plans."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.plan.plan import read_plan
from mint.render.models import devices_record
from mint.targets.devices import device
from tests.worlds.zoo import write_model


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    model = write_model("qwen3_moe", folder / "model")
    assert run_command(["analyze", str(model), "--output", str(folder / "a.mint"), "--json"]) == 0
    return folder / "a.mint"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    record: dict[str, Any] = json.loads(captured.out)
    return record


def test_several_budgets_make_several_plans(analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    budgets = ["min", "0.5x", "6bpw"]
    arguments = [part for budget in budgets for part in ("--budget", budget)]
    results = _json(capsys, "allocate", str(analysis), *arguments, "--output", str(output))["results"]
    assert [Path(result["plan"]).name for result in results] == ["plan-min.json", "plan-0.5x.json", "plan-6bpw.json"]
    for result in results:
        assert read_plan(result["plan"]).planned_bytes == result["planned_bytes"] <= result["budget_bytes"]
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run_command(["allocate", str(analysis), *arguments, "--output", str(output)]) == 0  # the run was killed
    other = ["allocate", str(analysis), *arguments, "--max-bits", "5", "--output", str(output)]
    capsys.readouterr()
    assert run_command(other) == 1
    assert "exists; nothing is ever overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_rules_reach_the_plan(analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locks = tmp_path / "locks.json"
    locks.write_text('{"*.k_proj": "8/32"}')
    rules = ["--formats", "3,4,8@32,64", "--keep", "*.q_proj", "--set", "*.v_proj=8/64", "--locks", str(locks)]
    plan = tmp_path / "plan.json"
    _json(capsys, "allocate", str(analysis), "--budget", "max", "--max-bits", "8", *rules, "--output", str(plan))
    formats = {choice.path.rpartition(".")[2]: str(choice.format) for choice in read_plan(plan).choices}
    assert (formats["q_proj"], formats["v_proj"], formats["k_proj"]) == ("keep", "8/64", "8/32")
    assert {str(choice.format) for choice in read_plan(plan).choices if choice.role == "o"} <= {"8/32", "8/64"}


def test_an_old_loader_gets_only_formats_it_reads(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    _json(capsys, "allocate", str(analysis), "--budget", "0.4x", "--compat", "mlx-0.21.1", "--output", str(plan))
    assert not {choice.format.bits for choice in read_plan(plan).choices} & {5}
    assert {choice.format.mode for choice in read_plan(plan).choices} <= {"affine", "keep"}


def test_a_device_and_a_context_are_a_budget(analysis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "allocate", str(analysis), "--device", "m4-pro-24", "--context", "32k")
    largest = _json(capsys, "allocate", str(analysis), "--budget", "max")
    assert record["budget_bytes"] == largest["budget_bytes"]  # a tiny model fits whole


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        (["--budget", "1kB"], ["is too small", "the smallest that works is", "--veto"]),
        (["--budget", "1MB", "--set", "*q_proj=4/32", "--keep", "*0.self_attn*"], ["make the patterns disjoint"]),
        (["--budget", "1MB", "--keep", "*nothing*"], ["matches no unit"]),
        (["--device", "m4-por-24"], ["not a known device", "m4-pro-24"]),
        (["--device", "iphone-16-pro", "--context", "900M"], ["has 6.442 GB", "Longest context that fits"]),
        (["--device", "m4-pro-24", "--context", "lots"], ["is not a context"]),
        (["--device", "this"], ["MLX sees no GPU here"]),
        (["--budget", "1MB", "--budget", "1MB"], ["given twice"]),
        ([], ["no budget", "mint devices"]),
        (["--budget", "1MB", "--compat", "mlx-0.20"], ["reads one format for all modules"]),
        (["--budget", "1MB", "--compat", "mlx-9"], ["not a known loader"]),
        (["--budget", "1MB", "--objective", "best"], ["not an objective"]),
        (["--budget", "1MB", "--prefer-speed", "-1"], ["is negative"]),
        (["--budget", "1MB", "--min-bits", "7", "--max-bits", "7"], ["no format has from 7 to 7 bits"]),
    ],
)
def test_an_impossible_request_exits_1_and_names_a_remedy(
    analysis: Path, arguments: list[str], complaints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["allocate", str(analysis), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    for complaint in complaints:
        assert complaint in captured.err


def test_a_curve_is_printed_written_and_drawn(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, picture = tmp_path / "curve.csv", tmp_path / "curve.svg"
    arguments = ["curve", str(analysis), "--points", "20", "--csv", str(numbers), "--plot", str(picture)]
    record = _json(capsys, *arguments)
    losses = [point["loss"] for point in record["points"]]
    assert losses == sorted(losses, reverse=True)
    assert {"device", "budget_bytes", "loss", "verdict"} == set(record["devices"][0])
    with numbers.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == losses
    assert picture.read_text().lstrip().startswith("<?xml")
    assert run_command(arguments) == 0  # the same bytes
    capsys.readouterr()
    assert run_command(["curve", str(analysis), "--points", "5", "--plot", str(picture)]) == 1
    assert "exists; nothing is ever overwritten" in capsys.readouterr().err
    assert run_command(["curve", str(analysis), "--points", "5", "--plot", str(tmp_path / "curve.txt")]) == 1
    assert "found no kind of picture" in capsys.readouterr().err
    png = tmp_path / "curve.png"
    assert run_command(["curve", str(analysis), "--points", "5", "--plot", str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "knees" in capsys.readouterr().out


def test_explain_lists_units_and_options_and_diff_lists_changes(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    for budget, path in (("0.3x", small), ("0.6x", large)):
        _json(capsys, "allocate", str(analysis), "--budget", budget, "--veto", "0", "--output", str(path))
    every = _json(capsys, "explain", str(small))
    assert len(every["units"]) == len(read_plan(small).choices)
    one = _json(capsys, "explain", str(small), "model.layers.0.self_attn.q_proj")
    assert [option["verdict"] for option in one["options"]].count("chosen") == 1
    changes = _json(capsys, "diff", str(small), str(large))
    assert changes["changed_units"] == len(changes["changes"]) > 0
    assert changes["after_bytes"] > changes["before_bytes"]
    for arguments in (["explain", str(small)], ["diff", str(small), str(large)]):
        assert run_command(arguments) == 0
    shown = capsys.readouterr().out
    assert "costs/MB" in shown
    assert "changed units" in shown


def test_devices_and_loaders_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    names = {device["device"] for device in _json(capsys, "devices")["devices"]}
    assert {"m4-pro-24", "m2-ultra-192", "iphone-16-pro", "rtx-4090"} <= names
    assert {device["device"] for device in _json(capsys, "devices", "m4-pro")["devices"]} < names
    assert all(loader["source"] for loader in _json(capsys, "devices", "--loaders")["loaders"])


@pytest.mark.parametrize("name", ["commodore", "m4pro24", "MacBook M4", "this"])
def test_a_device_is_named_in_the_list_as_in_a_budget(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[tuple[str, bool | str]] = []
    for use in (lambda: device(name), lambda: devices_record(name, brief=True)):
        try:
            answers.append(("found", bool(use())))
        except MintError as error:
            answers.append(("refused", error.typed))
    assert answers[0] == answers[1]
    assert run_command(["devices", name]) == (answers[0][0] == "refused")
    if name == "m4pro24":
        assert "m4-pro-24" in capsys.readouterr().err


def test_allocate_imports_no_compiler_and_no_model_code(analysis: Path) -> None:
    code = (
        "import sys; from mint.cli.main import run_command;"
        f"run_command(['allocate', {str(analysis)!r}, '--budget', '0.5x']);"
        "print([p for p in ('mlx', 'mlx_lm', 'numba', 'ray', 'structlog') if p in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
