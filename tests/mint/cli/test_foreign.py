"""Names that others chose never act on the screen, and none of their characters are lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.cli.main import run_command
from mint.cli.terminal.foreign import echo, visible
from mint.cli.terminal.screen import Screen
from mint.core.version import install_command
from tests.worlds.zoo import write_model

NAME = "c[bold]x[link=http:evil]\u202egpj\x1b[31m\nfake"
SHOWN = "c[bold]x[link=http:evil]\\u202egpj\\x1b[31m\\nfake"
RAW = ("\u202e", "\x1b[31m", "\nfake")


@given(st.text())
def test_visible_text_is_printable_and_plain_text_stays(text: str) -> None:
    assert not {"\x1b", "\u202e", "\u2066", "\n", "\r", "\x9b"} & set(visible(text))
    if text.isascii() and text.isprintable():
        assert visible(text) == text


def test_every_command_that_prints_names_escapes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model("llama", tmp_path / NAME, tokenizer=True)
    analysis, plan = (tmp_path / f"{NAME}{end}" for end in (".mint", ".json"))
    output = tmp_path / "\u202egpj\x1b[31m\nfake"
    budget = ["--budget", "400kB"]
    for arguments in (
        ["inspect", str(model)],
        ["analyze", str(model), "-o", str(analysis)],
        ["allocate", str(analysis), *budget, "-o", str(plan)],
        ["curve", str(analysis), "--points", "3", "--csv", str(tmp_path / f"{NAME}.csv")],
        ["diff", str(plan), str(plan)],
        ["explain", str(plan)],
        ["show", str(analysis)],
        ["show", str(plan)],
        ["assemble", str(plan), "--model", str(model), "-o", str(output)],
        ["verify", str(output)],
        ["show", str(output), "--verbose"],
    ):
        assert run_command(arguments) == 0
        shown = "".join(capsys.readouterr())
        assert not [raw for raw in RAW if raw in shown], arguments
        assert SHOWN in shown or "\\u202egpj\\x1b[31m\\nfake" in shown or arguments[0] in ("diff", "explain"), arguments
    another = ["allocate", str(analysis), "--budget", "500kB", "-o", str(plan)]
    for arguments in (["inspect", f"{model}-no"], another, [NAME]):
        assert run_command(arguments) in (1, 2)
        shown = capsys.readouterr().err
        assert not [raw for raw in ("\u202e", "\x1b[31m") if raw in shown], arguments


def test_jobs_of_others_cannot_break_a_list_of_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        screen.note(f"job 1: {NAME}")
        screen.answer({"count": 1, "jobs": [{"id": "1", "model": NAME, "reason": "[/bold]"}]})
    shown = "".join(capsys.readouterr())
    assert not [raw for raw in RAW if raw in shown]
    assert shown.count(SHOWN) == 2
    assert "[/bold]" in shown


def test_an_error_of_a_cure_keeps_its_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    assert run_command(["cluster"]) == 1
    assert install_command("cluster") in capsys.readouterr().err


def test_json_keeps_every_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model("llama", tmp_path / NAME)
    assert run_command(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(model)


def test_echo_keeps_one_line_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"joined {NAME}", "as it is")
    echo(NAME, error=True)
    out, err = capsys.readouterr()
    assert (out, err) == (f"joined {SHOWN}\nas it is\n", f"{SHOWN}\n")


def test_no_command_prints_past_the_place_that_escapes() -> None:
    root = Path(__file__).parents[3]
    files = [*(root / "mint" / "cli").glob("*.py"), *(root / "cluster").rglob("*.py")]
    assert [file.name for file in files if "typer.echo(" in file.read_text() or "click.echo(" in file.read_text()] == []
