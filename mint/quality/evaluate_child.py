"""An evaluation in a process of its own, which starts with a fast BLAS in the linker's global scope.

The question goes in as a line of JSON; lines of JSON come out: how far it has come, then the evaluation or what was
raised. The process ends with its parent: it cannot write to it any more.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress
from mint.quality.evaluation import Evaluation, Question, evaluation_from, question_from
from mint.quality.reference_file import partial_path
from mint.run.blas import preloading

_COMMAND = [sys.executable, "-P", "-c", "from mint.quality.evaluate_child import answer; answer()"]


def evaluate_apart(question: Question, library: str, on_progress: OnProgress) -> Evaluation:
    """The evaluation, made in a process that preloads `library`; what it raises for the user is raised here."""
    with (
        tempfile.TemporaryDirectory(prefix="mint-") as scratch,  # of the process, also when it is killed
        subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**preloading(library), "TMPDIR": scratch},
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(question.to_line())
            process.stdin.close()
            for line in process.stdout:
                record: dict[str, Any] = json.loads(line)
                if "stage" in record:
                    on_progress(Progress(**record))
                else:
                    return _answered(record)
            process.wait()  # it has something to say on stderr
        finally:
            process.kill()
            process.wait()
            if question.save_reference:
                partial_path(question.save_reference).unlink(missing_ok=True)  # killed, it could not
    raise RuntimeError(f"the process that evaluates ended with code {process.returncode}")


def _answered(record: dict[str, Any]) -> Evaluation:
    if "mend" in record:
        raise MintError(record["mend"])
    if "errno" in record:
        raise OSError(record["errno"], record["strerror"], record["filename"])
    return evaluation_from(json.dumps(record))


def answer() -> None:
    """Answer the one question on standard input: the whole life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts both; the parent decides
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    from mint.quality.evaluate_here import evaluate_here

    try:
        evaluation = evaluate_here(
            question_from(sys.stdin.readline()), lambda step: print(json.dumps(asdict(step)), file=answers)
        )
    except MintError as error:
        print(json.dumps({"mend": str(error)}), file=answers)
    except OSError as error:
        print(json.dumps({"errno": error.errno, "strerror": error.strerror, "filename": error.filename}), file=answers)
    else:
        answers.write(evaluation.to_line())
