"""A child process answers lines of JSON, and ends as its parent says."""

import io
import os
import signal
import sys
import time

import pytest

from mint.run.child import Child, end_with_parent, open_answers, questions, send

HERE = __name__


def echo() -> None:
    answers = open_answers()
    for question in questions():
        print("a library prints this")
        if question.get("fail"):
            raise RuntimeError("the last words")
        send(answers, {"echo": question}, bytes(question.get("nbytes", 0)))


def sleep() -> None:
    answers = open_answers()
    end_with_parent()
    send(answers, {"ready": True})
    time.sleep(600)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


pytestmark = pytest.mark.usefixtures("path")


def test_every_question_has_its_answer_and_bytes_may_follow() -> None:
    with Child(f"{HERE}:echo") as child:
        for nbytes in (0, 3, 1 << 20):
            child.ask({"nbytes": nbytes})
            assert child.answer() == {"echo": {"nbytes": nbytes}}
            assert child.read(nbytes) == bytes(nbytes)
        assert child.close() == 0


def test_a_child_that_dies_gives_no_answer_and_its_last_words_are_in_the_message() -> None:
    words = io.StringIO()
    with Child(f"{HERE}:echo", stderr=words) as child:
        child.ask({"fail": True})
        assert list(child.answers()) == []
        assert child.exit_message() == "ended with code 1: RuntimeError: the last words"
        child.ask({"too": "late"})
        assert child.answer() is None
    assert "a library prints this" in words.getvalue()


def test_an_interrupt_in_the_terminal_is_the_parents_alone() -> None:
    words = io.StringIO()
    with Child(f"{HERE}:sleep", stderr=words) as child:
        for _ in range(3):
            os.kill(child.pid, signal.SIGINT)  # while it imports
        assert child.answer() == {"ready": True}
        os.kill(child.pid, signal.SIGINT)
        assert child.exit_code is None
    assert words.getvalue() == ""


def test_a_child_ends_with_the_process_group_of_its_parent() -> None:
    with Child(f"{HERE}:sleep") as child:
        assert os.getpgid(child.pid) == os.getpgrp()


def test_the_end_of_its_input_ends_a_child_that_works() -> None:
    with Child(f"{HERE}:sleep") as child:
        assert child.answer() == {"ready": True}
        assert child.close() == -signal.SIGKILL
        assert child.exit_message() == f"ended with code {-signal.SIGKILL}"
