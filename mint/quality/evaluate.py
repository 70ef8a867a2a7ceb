"""How close is a quantized model to the original? Their predictions of the same tokens, compared.

Three passes, one model in memory at a time: the original in float32, the original in bf16 (the noise that 16-bit
arithmetic makes anyway: a candidate below it is as good as the original), the candidate. The first two fill a
reference file, which serves any number of candidates. On Linux CPUs the passes run in a process of their own, which
starts with a fast BLAS where the system has one.
"""

from collections.abc import Sequence
from pathlib import Path

from mint.core.log import log
from mint.core.progress import OnProgress, ignore
from mint.model.locate import locate
from mint.quality.evaluation import Evaluation, Question
from mint.run.blas import CURE, find_openblas, multiplies_slowly


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
            from mint.quality.evaluate_child import evaluate_apart

            return evaluate_apart(question, library, on_progress)
        log.warning(
            "openblas.not_found", reason="MLX's own BLAS on Linux is 10-20 times slower than OpenBLAS", cure=CURE
        )
    from mint.quality.evaluate_here import evaluate_here  # imports mlx_lm: a second that a parent does not need

    return evaluate_here(question, on_progress)
