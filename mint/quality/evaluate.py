"""Compares a quantized model with the original: their predictions of the same tokens.

On Linux CPUs the passes run in a child process, which starts with a fast BLAS in the linker's global scope where the
system has one.
"""

import pickle
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.progress import OnProgress, Progress, ignore
from mint.model.locate import locate
from mint.quality.evaluation import Evaluation, Question, Refused
from mint.run.blas import find_openblas, multiplies_slowly, preloading, warn_of_slow_blas
from mint.run.child import Child, end_with_parent, open_answers, send


def evaluate(output: Path | str, reference: Path | str, **options: Any) -> Evaluation:
    """Compare the model `output` with `reference`: `evaluate_all` for one model, with the same options.

    Raises `MintError` for a model that cannot be compared.
    """
    (result,) = evaluate_all([output], reference, **options)
    if isinstance(result, Refused):
        raise result.error
    return result


def evaluate_all(
    outputs: Sequence[Path | str],
    reference: Path | str,
    *,
    text: Sequence[Path | str] = (),
    tokens: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    save_reference: Path | str | None = None,
    tasks: Path | str | None = None,
    on_progress: OnProgress = ignore,
) -> list[Evaluation | Refused]:
    """Compare the models `outputs` with `reference`, which runs once: folders, GGUF files or ids of the hub.

    `reference` may also be a `save_reference` file. The sequences are windows of the `text` files, else what the
    reference itself writes by `seed`; they come from the file if `reference` is one. `tasks` is a file of questions for
    every model (`mint/quality/tasks.py`). Raises `MintError` before any
    work for a model that does not exist and for options that do not fit. A model is `Refused` when it does not load,
    when its reference is damaged or of another vocabulary, or when a text is too short; the others are compared.
    """
    folders, origin = [locate(output, on_progress) for output in outputs], locate(reference, on_progress)
    results: list[Evaluation | Refused] = []
    with tempfile.TemporaryDirectory(prefix="mint-") as scratch:
        file = Path(save_reference) if save_reference else None
        if file is None and len(folders) > 1 and origin.is_dir():
            file = Path(scratch) / "reference.safetensors"
        options = tuple(map(Path, text)), tokens, window, seed, file, Path(tasks) if tasks else None
        questions = [Question(folder, origin, *options) for folder in folders]
        for question in questions:
            question.check()
        for index, question in enumerate(questions):
            if index and file and file.exists():  # an earlier model was compared
                question = Question(question.output, file, tasks=question.tasks)
            on_progress(Progress("load", 0, 0, str(question.output)))
            try:
                results.append(_answered(question, on_progress))
            except MintError as error:
                results.append(Refused(str(question.output), error))
    return results


def _answered(question: Question, on_progress: OnProgress) -> Evaluation:
    if multiplies_slowly():
        if library := find_openblas():
            return evaluate_in_child(question, library, on_progress)
        warn_of_slow_blas()
    from mint.quality.compare import compare  # imports mlx_lm, which the parent of a child does not need

    return compare(question, on_progress)


def evaluate_in_child(question: Question, library: str, on_progress: OnProgress) -> Evaluation:
    """Evaluate in a child process that preloads `library`; errors that a user can fix are raised here."""
    with tempfile.TemporaryDirectory(prefix="mint-") as scratch:  # of the child, also when it is killed
        function, argument = f"{__name__}:answer_question", pickle.dumps(question).hex()
        environment = {**preloading(library), "TMPDIR": scratch}
        try:
            with Child(function, argument, environment=environment, stderr=sys.stderr) as child:
                for record in child.answers():
                    if "progress" in record:
                        on_progress(Progress(**record["progress"]))
                        continue
                    outcome: Evaluation | Exception = pickle.loads(child.read(record["nbytes"]))
                    if isinstance(outcome, Exception):
                        raise outcome
                    return outcome
                raise RuntimeError(f"the process that evaluates {child.exit_message()}")
        finally:
            if question.save_reference:
                partial_path(question.save_reference).unlink(missing_ok=True)  # a killed child cannot


def answer_question() -> None:
    """Answer the question in the first argument: the life of the child process."""
    from mint.quality.compare import compare

    answers = open_answers()
    end_with_parent()
    outcome: Evaluation | Exception
    try:
        question = pickle.loads(bytes.fromhex(sys.argv[1]))
        outcome = compare(question, lambda step: send(answers, {"progress": asdict(step)}))
    except (MintError, OSError) as error:
        outcome = error
    data = pickle.dumps(outcome)
    send(answers, {"nbytes": len(data)}, data)
