"""The questions of a file are read whether or not the harness that asks them is installed."""

import json
from pathlib import Path

import pytest

from mint.core.errors import MintError
from mint.quality.tasks import questions_in


def test_a_separator_of_lines_within_a_text_ends_no_question(tmp_path: Path) -> None:
    question = {"question": "a\u2028b\x85c", "choices": ["d"], "answer": 0}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(question, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert questions_in(tmp_path / "tasks.jsonl") == [question]


def test_a_text_is_no_list_of_choices(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "a", "choices": "bc", "answer": 0}))
    with pytest.raises(MintError, match="line 1 is no question"):
        questions_in(tmp_path / "tasks.jsonl")
