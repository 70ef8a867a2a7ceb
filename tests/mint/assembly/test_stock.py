"""The process loads the result as a user does."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mint.assembly.stock_child import Stock, stock


@pytest.fixture(scope="module")
def process() -> Stock:
    return Stock()


def test_it_loads_and_computes(process: Stock, llama: Path) -> None:
    answer = process.ask(llama, [])()
    assert (answer.loads_error, answer.logits_error) == ("", "")
    assert answer.tokenizer_fault == ""
    assert answer.logits.ndim == 3
    assert np.isfinite(answer.logits).all()
    assert answer.peak_rss_bytes > 10**7


def test_a_failed_load_is_an_answer_and_the_next_question_gets_its_own(
    process: Stock, llama: Path, tmp_path: Path
) -> None:
    ignored = process.ask(llama, [])
    broken = process.ask(tmp_path, [])()
    assert "FileNotFoundError" in broken.loads_error
    assert broken.logits.size == 0
    assert process.ask(llama, [])().loads_error == ""
    del ignored


def test_a_process_that_dies_is_an_answer_and_another_replaces_it(llama: Path) -> None:
    mine = Stock()
    answer = mine.ask(llama, [])
    dead = mine.pid
    os.kill(dead, signal.SIGKILL)
    assert "ended with code -9" in answer().loads_error
    assert mine.ask(llama, [])().loads_error == ""
    assert mine.pid != dead
    assert stock() is stock()
