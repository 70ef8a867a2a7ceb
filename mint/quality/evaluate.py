"""Compares a quantized model with the original: their predictions of the same tokens.

Three passes, one model in memory at a time: the original in float32, the original in bf16 (the noise that 16-bit
arithmetic makes anyway: a candidate below it is as good as the original), the candidate. The first two fill a
reference file, which serves any number of candidates. On Linux CPUs the passes run in a child process, which starts
with a fast BLAS in the linker's global scope where the system has one.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.core.log import log
from mint.core.progress import OnProgress, Progress, ignore
from mint.model.locate import locate
from mint.quality.evaluation import Evaluation, Question, evaluation_of, question_of
from mint.quality.reference_file import partial_path, read_reference
from mint.run.blas import CURE, find_openblas, multiplies_slowly, preloading
from mint.run.child import Child, end_with_parent, open_answers, questions, send


def evaluate(
    output: Path | str,
    reference: Path | str,
    *,
    text: Sequence[Path | str] = (),
    tokens: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    save_reference: Path | str | None = None,
    on_progress: OnProgress = ignore,
) -> Evaluation:
    """Compare the model `output` with `reference`: folders or ids of the hub, the latter also a `save_reference` file.

    The sequences are windows of the `text` files, else what the reference itself writes by `seed`; they come from the
    file if `reference` is one. Raises `MintError` when a model does not load, a reference is damaged or of another
    vocabulary, or a text is too short.
    """
    question = Question(
        locate(output, on_progress), locate(reference, on_progress), tuple(map(Path, text)), tokens, window, seed,
        Path(save_reference) if save_reference else None,
    )  # fmt: skip
    question.check()
    if multiplies_slowly():
        if library := find_openblas():
            return evaluate_in_child(question, library, on_progress)
        log.warning(
            "openblas.not_found", reason="MLX's own BLAS on Linux is 10-20 times slower than OpenBLAS", cure=CURE
        )
    return evaluate_here(question, on_progress)


def evaluate_here(question: Question, on_progress: OnProgress) -> Evaluation:
    """Evaluate in this process: write the reference file, unless there is one, and compare."""
    from mint.quality.compare import compare  # imports mlx_lm, which the parent of a child does not need
    from mint.quality.forward import fusing_nothing
    from mint.quality.make_reference import refer

    started = time.perf_counter()
    with fusing_nothing(), tempfile.TemporaryDirectory(prefix="mint-") as scratch:
        path = question.reference
        if path.is_dir():
            path = question.save_reference or Path(scratch) / "reference.safetensors"
            refer(question, path, on_progress)
        return compare(question.output, read_reference(path), started, on_progress)


def evaluate_in_child(question: Question, library: str, on_progress: OnProgress) -> Evaluation:
    """Evaluate in a child process that preloads `library`; errors that a user can fix are raised here."""
    with tempfile.TemporaryDirectory(prefix="mint-") as scratch:  # of the child, also when it is killed
        environment = {**preloading(library), "TMPDIR": scratch}
        try:
            with Child(f"{__name__}:answer_question", environment=environment, stderr=sys.stderr) as child:
                child.ask(question.to_record())
                for record in child.answers():
                    if "progress" not in record:
                        return _evaluation(record)
                    on_progress(Progress(**record["progress"]))
                raise RuntimeError(f"the process that evaluates {child.exit_message()}")
        finally:
            if question.save_reference:
                partial_path(question.save_reference).unlink(missing_ok=True)  # a killed child cannot


def _evaluation(record: dict[str, Any]) -> Evaluation:
    if "error" in record:
        raise MintError(record["error"])
    if "errno" in record:
        raise OSError(record["errno"], record["strerror"], record["filename"])
    return evaluation_of(record["evaluation"])


def answer_question() -> None:
    """Answer one question: the life of the child process."""
    answers = open_answers()
    question = question_of(next(questions()))
    end_with_parent()
    try:
        evaluation = evaluate_here(question, lambda step: send(answers, {"progress": asdict(step)}))
    except MintError as error:
        send(answers, {"error": str(error)})
    except OSError as error:
        send(answers, {"errno": error.errno, "strerror": error.strerror, "filename": error.filename})
    else:
        send(answers, {"evaluation": asdict(evaluation)})
