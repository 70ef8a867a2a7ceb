"""Questions with several answers, which lm-evaluation-harness asks a model: its answer is the likeliest one.

A file has one JSON object a line: `question`, `choices` and the index of the right one, `answer`. A choice continues
the text of its question, after a space. No chat template is used and nothing is downloaded.
"""

# N questions

import json
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from mint.core.errors import MintError
from mint.core.files import read_text
from mint.core.version import install_command
from mint.model.module_tree import has_tokenizer
from mint.quality.divergence import Array
from mint.quality.estimates import Statistic, mean

# the harness's names of the shares of right answers: by their likelihood, and by that of a character of them
_METRICS = {"task_accuracy": "acc", "task_accuracy_by_length": "acc_norm"}
_BATCH = 8  # sequences; mlx_lm's default


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The questions of a file; `MintError` where they cannot be asked."""
    if find_spec("lm_eval") is None:
        raise MintError(f"--tasks: lm-evaluation-harness is not installed; needed: {install_command('tasks')}")
    return questions_in(path)


def questions_in(path: Path) -> list[dict[str, Any]]:
    """The questions of a file; `MintError` names the first line that is none."""
    questions = []
    for number, line in enumerate(read_text(path, "one JSON object a line").rstrip("\n").split("\n"), 1):
        try:
            question = json.loads(line)
            text, choices, answer = question["question"], question["choices"], question["answer"]
            is_valid = type(answer) is int and all(isinstance(part, str) for part in (text, *choices))
            is_valid = is_valid and isinstance(choices, list) and 0 <= answer < len(choices)
        except (ValueError, KeyError, TypeError, RecursionError):
            is_valid = False
        if not is_valid:
            example = '{"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'
            raise MintError(f"{path}: line {number} is no question; needed: an object such as {example}")
        questions.append({"question": text, "choices": choices, "answer": answer})
    if not questions:
        raise MintError(f"{path}: no questions found; needed: one JSON object a line")
    return questions


def task_figures(folder: Path, path: Path) -> Mapping[str, tuple[Statistic, Array]]:
    """The shares of right answers of the model in `folder`, each with its sample (N, 1)."""
    if not has_tokenizer(folder):
        raise MintError(f"{folder}: no tokenizer found; --tasks needs a model with one")
    from datasets import Dataset  # these three import for seconds
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from mlx_lm.evaluate import MLXLM

    questions = Dataset.from_list(read_tasks(path))
    mean_of = {"aggregation": "mean", "higher_is_better": True}
    with redirect_stderr(StringIO()):  # its bars
        task = ConfigurableTask(
            config={
                "task": path.stem,
                "custom_dataset": lambda **_: {"test": questions},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "question",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "metric_list": [{"metric": metric, **mean_of} for metric in _METRICS.values()],
                "num_fewshot": 0,
            }
        )
        model = MLXLM(str(folder), batch_size=_BATCH, use_chat_template=False)
        answers = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True, verbosity="ERROR")
    (samples,) = answers["samples"].values()
    return {
        name: (mean, np.array([[sample[metric]] for sample in samples], np.float64))
        for name, metric in _METRICS.items()
    }
