"""Questions with several answers: the figures of lm-evaluation-harness, offline."""

import importlib.util
import json
from pathlib import Path

import pytest

from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.quality.tasks import read_tasks
from tests.worlds.zoo import write_model

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra tasks")


def _write(path: Path, *questions: object) -> Path:
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


@needs_harness
def test_models_answer_questions_beside_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    model = write_model("llama", tmp_path / "model", tokenizer=True)
    questions = ({"question": f"a b {i}", "choices": ["a", "b b b b", "c c"], "answer": i % 3} for i in range(9))
    tasks = _write(tmp_path / "tasks.jsonl", *questions)
    command = ["evaluate", str(model), "--reference", str(model), "--tokens", "64", "--window", "8"]
    assert run_command([*command, "--tasks", str(tasks), "--json"]) == 0
    out, err = capsys.readouterr()
    figures = {row["figure"]: row for row in json.loads(out)["figures"]}
    assert figures["task_accuracy"]["value"] == pytest.approx(1 / 3)  # the shortest answer is the likeliest
    assert figures["task_accuracy"]["low"] < 1 / 3 < figures["task_accuracy"]["high"]
    assert 0 <= figures["task_accuracy_by_length"]["value"] <= 1
    assert "it/s" not in err


@needs_harness
@pytest.mark.parametrize(
    "question",
    [[], {"question": "a"}, {"question": "a", "choices": ["b"], "answer": 1},
     {"question": "a", "choices": ["b", "c"], "answer": 0.5}, {"question": 3, "choices": ["b"], "answer": 0},
     {"question": "a", "choices": [1], "answer": 0}],
)  # fmt: skip
def test_a_line_that_is_no_question_is_named(tmp_path: Path, question: object) -> None:
    good = {"question": "a", "choices": ["b", "c"], "answer": 1}
    assert read_tasks(_write(tmp_path / "good.jsonl", good)) == [good]
    with pytest.raises(MintError, match=r"line 2 is no question; needed: an object such as"):
        read_tasks(_write(tmp_path / "bad.jsonl", good, question))
    with pytest.raises(MintError, match="no questions found"):
        read_tasks(_write(tmp_path / "empty.jsonl"))


def test_the_extra_is_named_where_the_harness_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint.quality.tasks.find_spec", lambda name: None)
    with pytest.raises(MintError, match=r"needed: pip install 'mint-mlx\[tasks\]'"):
        read_tasks(tmp_path / "tasks.jsonl")
