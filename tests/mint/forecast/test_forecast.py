"""A forecast comes before the work: its time counts what is left to do, its memory is never exceeded."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.probes.own_text import BASES_OF_TEXT
from mint.cli.main import run_command
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.memory import PROCESSES_BYTES
from mint.core.progress import ignore
from mint.core.sizes import format_seconds, format_size, parse_size
from mint.forecast.forecast import Forecast
from mint.forecast.machine import machine_rates
from mint.forecast.memory import check_memory, matrices_per_token, needed_memory
from mint.kernels.backend import backend
from mint.model.source import open_source
from mint.pipeline import Pipeline, Target, quantize
from mint.plan.recipe import Budget, Recipe
from mint.run.stacks import BLOCK, held_bytes
from tests.worlds.zoo import ARCHITECTURES
from tools.models.make_shape import write_shape
from tools.models.shapes import SHAPES

GOOD = Recipe(rounding="compensate")


def forecast_of(model: Path, output: Path, recipe: Recipe = GOOD) -> Forecast:
    return Pipeline(recipe, may_probe=True).foresee(model, [Target(output, Budget.of("6bpw"))])


def test_a_dry_run_writes_nothing(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["quantize", str(llama), "--budget", "6bpw", "--output", str(tmp_path / "out"), "--dry-run"]
    assert run_command([*request, "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert {"seconds", "steps", "peak_memory_bytes", "memory_bytes", "disk_bytes"} <= set(forecast)
    assert run_command(request) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["time", "memory", "disk"]
    assert list(tmp_path.iterdir()) == []


def test_qualities_have_the_time_and_memory_of_a_model(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["recipes", str(llama), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["qualities"]
    assert [row["time"].split()[1] for row in rows if row["quality"] in ("fast", "good")] == ["s", "s"]
    assert not any("seconds" in row for row in rows)


def test_qualities_have_the_forecast_of_a_dry_run_at_the_size_of_uniform_4_bit(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the size of the whole model nothing is rounded: that forecast is of another work than people mean."""
    assert run_command(["recipes", str(llama), "--json"]) == 0
    answer = capsys.readouterr()
    record = json.loads(answer.out)
    assert f"--budget {record['budget']}, the size of uniform 4-bit" in answer.err
    assert 4.5 < 8 * parse_size(record["budget"]) / sum(u.size for u in open_source(llama).units) < 5.5
    for row in record["qualities"]:
        request = ["quantize", str(llama), "--budget", record["budget"], "--quality", row["quality"]]
        assert run_command([*request, "--output", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
        forecast = json.loads(capsys.readouterr().out)["forecast"]
        assert row["memory"] == format_size(forecast["peak_memory_bytes"])
        assert ("predict" in [step["step"] for step in forecast["steps"]]) == (row["quality"] != "fast")


def test_the_forecast_comes_first_and_counts_only_what_is_left(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model()
    forecasts: list[Forecast] = []
    first = forecast_of(model, tmp_path / "out")
    result = quantize(model, "6bpw", tmp_path / "out", GOOD, on_forecast=forecasts.append)
    stages = ["start", "analyze", "write text", "probe", "predict", "assemble", "verify"]
    assert [step.name for step in first.steps] == stages
    assert [step.name for step in forecasts[0].steps] == [step.name for step in first.steps]
    assert [step.name for step in forecast_of(model, tmp_path / "2").steps] == [
        "start",
        "predict",
        "assemble",
        "verify",
    ]
    assert result.manifest.weight_bytes <= first.disk_bytes


def test_a_finished_output_is_announced_as_only_verified(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model, output, forecasts = make_model(), tmp_path / "out", list[Forecast]()
    for _ in range(2):
        quantize(model, "6bpw", output, GOOD, on_forecast=forecasts.append)
    assert "only verified" not in str(forecasts[0])
    assert "the output exists and is only verified" in str(forecasts[1])
    assert [step.name for step in forecasts[1].steps] == ["start", "verify"]
    assert forecasts[1].disk_bytes == 0
    targets = [Target(folder, Budget.of("6bpw")) for folder in (output, tmp_path / "second")]
    one, two = (Pipeline(GOOD).foresee(model, some) for some in (targets[1:], targets))
    assert one.disk_bytes == two.disk_bytes
    assert one.seconds < two.seconds < one.seconds + forecasts[1].seconds


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (["--quality", "good"], "it was made with --quality fast"),
        ([], "it is of another model"),
        (["--output", "empty"], "nothing is ever overwritten"),
    ],
)
def test_a_dry_run_forecasts_beside_an_existing_output_and_says_what_the_run_needs(
    changed: list[str], reason: str, make_model: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = make_model()
    quantize(model, "6bpw", tmp_path / "out", Recipe(rounding="nearest"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    if "model" in reason:
        model = make_model("qwen3_moe", "other")
    request = ["quantize", str(model), "--budget", "6bpw", "--quality", "fast", "--output", "out", *changed]
    forecasts = []
    for options in (["--dry-run"], ["--dry-run", "--force"]):
        assert run_command([*request, *options, "--json"]) == 0
        answer = capsys.readouterr()
        forecasts.append([step["step"] for step in json.loads(answer.out)["forecast"]["steps"]])
        assert ("without --dry-run this stops: " in answer.err) == ("--force" not in options)
        assert (reason in answer.err and "give --force" in answer.err) == ("--force" not in options)
    assert forecasts[0] == forecasts[1]
    assert "assemble" in forecasts[0]
    assert run_command(request) == 1


def test_a_step_takes_longer_the_more_there_is_to_do(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model()
    fast, good = (forecast_of(model, tmp_path / "out", Recipe(rounding=name)) for name in ("nearest", "compensate"))
    assert 0 < fast.seconds < good.seconds
    assert fast.peak_bytes < good.peak_bytes
    two = Pipeline(GOOD, may_probe=True).foresee(
        model, [Target(tmp_path / name, Budget.of(name)) for name in ("5bpw", "6bpw")]
    )
    assert good.seconds < two.seconds < 2 * good.seconds
    assert [format_seconds(seconds) for seconds in (3.2, 200, 9000)] == ["3 s", "3 min", "2.5 h"]


def test_the_machine_is_measured_once() -> None:
    (cache_folder() / "rates").unlink()  # those that tests share
    first = machine_rates("nearest", ignore)
    assert machine_rates("nearest", ignore) == first
    assert min(getattr(first, name) for name in first.__dataclass_fields__) > 0


def test_rates_of_a_rounding_need_no_kernels_of_others() -> None:
    """They would be compiled in this process, which keeps the compiler's memory to its end."""
    code = (
        "from mint.forecast.benchmark import measured_rates; measured_rates('nearest'); "
        "from mint.kernels import compensate; assert not compensate._round.signatures"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "experts"), [("llama4-scout", 1), ("qwen3-30b-a3b", 8), ("kimi-k2.5", 8)])
def test_stacks_take_the_memory_of_their_blocks(name: str, experts: int, tmp_path: Path) -> None:
    write_shape(tmp_path, SHAPES[name], layers=4)
    source = open_source(tmp_path)
    stacks = [unit for unit in source.units if unit.role.startswith("expert_") and unit.slices > 1]
    largest = max(unit.nbytes for unit in source.units)
    assert largest > 3 * BLOCK
    assert {matrices_per_token(source)[unit.path] for unit in stacks} == {experts}
    needs = needed_memory(source, "nearest", "")
    blocks = 4 * BLOCK * 3 * 1.01 + backend().working_bytes(BLOCK)  # two as stored and one as weights, at most 4 bytes
    whole = max(unit.nbytes for unit in source.units if unit not in stacks)
    assert needs["measure and write"] - PROCESSES_BYTES <= max(2 * largest + blocks, 3 * whole)
    assert needs["verify"] - PROCESSES_BYTES <= max(3 * 10**9, 4 * whole)
    assert needs["measure and write"] - PROCESSES_BYTES >= max(held_bytes(source, unit) for unit in stacks)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_a_bound(name: str, make_model: Callable[..., Path]) -> None:
    source = open_source(make_model(name), requantize=True)
    needs = [max(needed_memory(source, "compensate", base).values()) for base in BASES_OF_TEXT]
    assert min(needs) >= max(needed_memory(source, "nearest", "").values())


def test_too_little_memory_is_refused_at_the_start_with_the_least_that_works(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    with pytest.raises(MintError, match=r"too little: to .* takes up to") as refusal:
        quantize(llama, "6bpw", tmp_path / "out", GOOD, memory=10**6)
    least = re.search(r"Needed: memory ([\d.]+ \w+),", str(refusal.value))
    assert least is not None and not list(tmp_path.iterdir())
    check_memory(source, "compensate", int(1.001 * parse_size(least[1])))


def large_vocabulary(folder: Path) -> Path:
    """A model of which the tables of tokens are nearly all."""
    folder.mkdir()
    more = {
        "vocab_size": 32768, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64,
        "num_key_value_heads": 2,
    }  # fmt: skip
    shape = SHAPES["qwen3-0.6b"]
    write_shape(folder, replace(shape, config=shape.config | more), layers=2, random=True)
    return folder


def mixture(folder: Path) -> Path:
    """A model of which the experts are nearly all."""
    folder.mkdir()
    more = {
        "vocab_size": 2048, "hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 16,
        "num_experts_per_tok": 2, "num_attention_heads": 4, "head_dim": 64, "num_key_value_heads": 2,
    }  # fmt: skip
    shape = SHAPES["qwen3-30b-a3b"]
    write_shape(folder, replace(shape, config=shape.config | more), layers=1, random=True)
    return folder


# training holds more of a large vocabulary than any other pass, so the passes before it have it among the long cases
long = pytest.mark.long


@pytest.mark.parametrize(
    ("rounding", "make"),
    [
        ("nearest", large_vocabulary),
        ("nearest", mixture),
        pytest.param("compensate", large_vocabulary, marks=long),
        ("compensate", mixture),
        pytest.param("couple", large_vocabulary, marks=long),
        ("couple", mixture),
        ("tune", large_vocabulary),
        pytest.param("tune", mixture, marks=long),
    ],
)
def test_all_processes_together_keep_to_the_bound(rounding: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    main = "import mint.run.stacks as stacks; stacks.BLOCK = 1 << 20; from mint.__main__ import run; run()"
    command = [sys.executable, "-c", main, "quantize", str(model), "--budget", "5bpw", "--rounding", rounding]
    command += ["--output", str(tmp_path / "out"), "--json", "--veto", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    assert record["peak_rss_bytes"] <= record["forecast"]["peak_memory_bytes"]


def test_a_budget_for_the_whole_model_needs_no_text(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(*budgets: str) -> list[str]:
        targets = [Target(tmp_path / budget, Budget.of(budget)) for budget in budgets]
        return [step.name for step in Pipeline(GOOD).foresee(llama, targets).steps]

    assert steps("1GB") == ["start", "analyze", "assemble", "verify"]
    assert {"write text", "predict"} <= set(steps("1GB", "6bpw")) == set(steps("6bpw"))
    stages: list[str] = []
    result = quantize(llama, "1GB", tmp_path / "out", GOOD, on_progress=lambda step: stages.append(step.stage))
    assert "write text" not in stages
    assert result.verification.passed
    assert result.plan.keeps_all
    assert result.manifest.closeness is None
    assert run_command(["show", str(tmp_path / "out")]) == 0
    assert "closeness  hardly distinguishable from the original: KL 0, nothing is rounded" in capsys.readouterr().out
