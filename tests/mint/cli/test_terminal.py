"""Screens of 80 and 100 columns, pipes and dumb terminals."""

import json
from pathlib import Path

import pytest

from mint.cli.main import run_command
from mint.cli.terminal.tables import table_lines
from tests.worlds.terminals import on_terminal, piped
from tests.worlds.zoo import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of experts, its analysis and a plan."""
    folder = tmp_path_factory.mktemp("screens")
    model = write_model("qwen3_moe", folder / "model", tokenizer=True)
    assert run_command(["analyze", str(model), "--output", str(folder / "a.mint"), "--json"]) == 0
    assert run_command(["allocate", str(folder / "a.mint"), "-b", "0.4x", "-o", str(folder / "p.json"), "--json"]) == 0
    return folder


COMMANDS = (
    ["devices"], ["devices", "m4"], ["devices", "--loaders"], ["config"], ["inspect", "model"], ["curve", "a.mint"],
    ["explain", "p.json"], ["explain", "p.json", "*.0.self_attn.q_proj"], ["show", "a.mint"], ["show", "p.json"],
    ["show", "p.json", "--verbose"],
)  # fmt: skip


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_tables_fit_the_terminal(
    arguments: list[str], columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    wide = [line for line in on_terminal(*arguments, columns=columns) if len(line) > columns]
    words = [line for line in wide if max(map(len, line.split())) < columns // 2]  # a path is never broken
    assert not words


def test_a_pipe_gets_whole_rows(folder: Path) -> None:
    """One line a row and nothing cut: what `grep` and `wc` need."""
    result = piped("explain", str(folder / "p.json"))
    rows = [line for line in result.stdout.splitlines() if "down_proj" in line]
    assert len(rows) == len({row.split()[0] for row in rows}) > 1
    assert all("model.layers." in row for row in rows)
    assert not any(char in result.stdout for char in "┃│…\x1b")


def test_a_dumb_terminal_gets_no_colours_and_no_bar(folder: Path) -> None:
    lines = on_terminal("analyze", str(folder / "model"), "-o", str(folder / "b.mint"), columns=80, TERM="dumb")
    assert lines[0].startswith("analyze model (")
    assert not any("\x1b" in line or "━" in line for line in lines)


def test_a_terminal_gets_one_bar(folder: Path) -> None:
    shown = "\n".join(on_terminal("analyze", str(folder / "model"), "-o", str(folder / "c.mint"), columns=80))
    assert "━" in shown
    assert "\nstarting" not in shown


def test_a_reader_that_stops_is_no_error(folder: Path) -> None:
    import subprocess

    from tests.worlds.terminals import COMMAND

    line = f"{' '.join(COMMAND)} devices --sources --verbose | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_progress_can_be_lines_of_json(folder: Path) -> None:
    result = piped("analyze", str(folder / "model"), "-o", str(folder / "d.mint"), "--json", "--progress", "json")
    records = [json.loads(line) for line in result.stderr.splitlines()]
    last = [record for record in records if record.get("stage") == "analyze"][-1]
    assert last["done"] == last["total"]
    assert records[0]["stage"] == "start"
    assert json.loads(result.stdout)["analysis"]


def test_progress_can_be_silent(folder: Path) -> None:
    result = piped("analyze", str(folder / "model"), "-o", str(folder / "e.mint"), "--progress", "none")
    assert result.stderr == ""


def test_a_list_of_jobs_fits_80_columns_with_every_id_whole() -> None:
    row = {
        "id": "0123456789abcdef", "model": "team/Qwen3-Next-80B-A3B-Instruct", "budget": "macbook-pro-m4-max-64gb",
        "state": "assembling", "owner": "anna.longname@lab", "reason": "it made way for a shorter job, and resumes",
    }  # fmt: skip
    lines = table_lines([row, row | {"reason": ""}], 80)
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(row["id"]) for line in lines[1:])
