"""The question of an evaluation, and its answer: records that pass between two processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mint.core.errors import MintError
from mint.model.opening.path_kind import no_such_folder
from mint.quality.estimates import Estimate

OWN_TEXT = "written by the reference model"


@dataclass(frozen=True, slots=True)
class Question:
    """The two models to compare and the sequences to compare them on; None leaves a choice to the kind of text."""

    output: Path
    reference: Path  # a model folder or a reference file
    text: tuple[Path, ...] = ()
    tokens: int | None = None
    window: int | None = None
    seed: int | None = None
    save_reference: Path | None = None
    tasks: Path | None = None  # questions for `output`

    def check(self) -> None:
        """Raise `MintError` for what is wrong before any work."""
        if self.output.is_file():
            raise MintError(f"{self.output}: it is a file; needed: the folder of an MLX model, or a GGUF file")
        if not self.output.is_dir():
            raise no_such_folder(self.output, "the folder of an MLX model")
        if not self.reference.exists():
            needed = "needed: the original model's folder, or a file of --save-reference"
            raise MintError(f"{self.reference}: no such model or file; {needed}")
        if self.tasks:
            from mint.quality.tasks import read_tasks  # imports mlx_lm

            read_tasks(self.tasks)
        names = ("text", "tokens", "window", "seed", "save_reference")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) not in (None, ())]
        if self.reference.is_file() and given:
            fault = f"is a reference file and holds its sequences, but {', '.join(given)} was given"
            raise MintError(f"{self.reference} {fault}; leave that out, or give the model's folder as --reference")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The distance of the model in `output` from its reference, in figures with 95 % confidence intervals.

    KL in nats per token. `noise_floor` is the KL of the reference itself between float32 and bf16 arithmetic.
    """

    output: str
    reference: str
    identity: str  # of the reference's weights and config
    text: str
    seed: int
    sequences: int
    tokens: int  # of all sequences
    device: str
    estimates: Mapping[str, Estimate]
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A model that cannot be compared, and the reason."""

    output: str
    error: MintError
