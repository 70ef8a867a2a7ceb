"""Short attacks: kills, failing disks and hostile input; `python -m tools.attack.kill` and its siblings are long."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint.core.errors import MintError
from mint.core.files import naming
from mint.core.sizes import parse_budget
from mint.model.checkpoint.shards import INDEX_NAME, read_index
from mint.model.storages.decoding import settings_of
from tools.attack.fuzz import fuzz
from tools.attack.hub import hub_answers, read_hub
from tools.attack.parsers import PARSERS, Made, make
from tools.attack.shim import may_preload

INPUTS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_returns_or_refuses_whatever_it_gets(name: str, made: Made) -> None:
    count = INPUTS // 5 if name in ("source", "tokenizer", "hub") else INPUTS
    assert not fuzz(name, made, range(count))


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": "four"},
        {"weight_block_size": 5},
        {"config_groups": [1]},
        {"config_groups": {"a": {"weights": {"num_bits": None}}}},
        {"config_groups": {"a": {"weights": {"block_structure": 1}}}},
    ],
)
def test_settings_of_a_quantization_that_are_nonsense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MintError, match="quantization_config cannot be read"):
        settings_of({"quantization_config": settings})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda answers: answers["info"].pop("sha"), "answers as no hub does"),
        (lambda answers: answers["tree"].pop(0), "its two listings differ: config.json stands in one"),
        (lambda answers: answers["tree"][0].update(path="config.json/a"), "its two listings differ: config.json"),
        (lambda answers: answers["headers"].update({"Content-Length": 0}), "sends no byte|two listings|as no hub does"),
    ],
)
def test_answers_that_no_hub_gives_are_refused(
    change: Callable[[dict[str, Any]], object], fault: str, tmp_path: Path
) -> None:
    answers = json.loads(hub_answers())
    change(answers)
    with pytest.raises(MintError, match=fault):
        read_hub(tmp_path, json.dumps(answers).encode())


@pytest.mark.parametrize("word", ["32²", "٣²", "²"])
def test_digits_of_other_scripts_are_no_budget(word: str) -> None:
    with pytest.raises(MintError):
        parse_budget(word)


def test_a_shard_whose_name_no_disk_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "x" * 5000}}))
    with pytest.raises(MintError, match="no file of the folder"):
        read_index(tmp_path)


def test_an_error_of_an_open_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="file") as caught, naming(tmp_path / "file"):
        raise OSError(5, "Input/output error")
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError, match="own"), naming(tmp_path / "file"):
        raise OSError(5, "Input/output error", "own")


@pytest.mark.skipif(not may_preload(), reason="the shim needs Linux and gcc")
@pytest.mark.parametrize("attack", ["kill", "faults"])
def test_a_command_withstands_kills_and_failing_disks(attack: str) -> None:
    commands = ("allocate", "analyze", "fast")
    words = [sys.executable, "-m", f"tools.attack.{attack}", *commands, "--count", "8", "--seed", "1"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(command in result.stdout for command in commands)
