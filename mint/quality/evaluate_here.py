"""An evaluation in this process: write the reference file, unless there is one, and compare."""

import tempfile
import time
from pathlib import Path

from mint.core.progress import OnProgress
from mint.quality.compare import compare
from mint.quality.evaluation import Evaluation, Question
from mint.quality.forward import fusing_nothing
from mint.quality.make_reference import refer
from mint.quality.reference_file import read_reference


def evaluate_here(question: Question, on_progress: OnProgress) -> Evaluation:
    """The evaluation, made in this process."""
    started = time.perf_counter()
    with fusing_nothing(), tempfile.TemporaryDirectory(prefix="mint-") as scratch:
        path = question.reference
        if path.is_dir():
            path = question.save_reference or Path(scratch) / "reference.safetensors"
            refer(question, path, on_progress)
        return compare(question.output, read_reference(path), started, on_progress)
