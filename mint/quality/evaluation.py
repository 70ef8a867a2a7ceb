"""The question of an evaluation, and its answer: records that pass between two processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mint.core.errors import MintError
from mint.quality.estimates import Estimate


@dataclass(frozen=True, slots=True)
class Question:
    """The two models to compare and the sequences to compare them on; None leaves a choice to the kind of text."""

    output: Path
    reference: Path  # a model folder or a reference file
    text: tuple[Path, ...]
    tokens: int | None
    window: int | None
    seed: int | None
    save_reference: Path | None

    def check(self) -> None:
        """Raise `MintError` for what can be told to be wrong before any work."""
        if not self.output.is_dir():
            raise MintError(f"{self.output}: no such folder; needed: the folder of an MLX model")
        if not self.reference.exists():
            raise MintError(
                f"{self.reference}: no such model or file; needed: the original model's folder, or a file of "
                "--save-reference"
            )
        if self.save_reference and self.save_reference.exists():
            raise MintError(f"{self.save_reference} exists; needed a new name for --save-reference, or remove the file")
        options = {
            "--text": self.text, "--tokens": self.tokens, "--window": self.window, "--seed": self.seed,
            "--save-reference": self.save_reference,
        }  # fmt: skip
        given = [name for name, value in options.items() if value not in (None, ())]
        if self.reference.is_file() and given:
            raise MintError(
                f"{self.reference} is a reference file and holds its sequences, but {', '.join(given)} was given; "
                "leave that out, or give the model's folder as --reference"
            )

    def to_record(self) -> dict[str, Any]:
        """The question as JSON holds it."""
        paths = {"output": str(self.output), "reference": str(self.reference), "text": [*map(str, self.text)]}
        return asdict(self) | paths | {"save_reference": str(self.save_reference) if self.save_reference else None}


def question_of(record: Mapping[str, Any]) -> Question:
    """The question of a record that `to_record` made."""
    saved = record["save_reference"]
    return Question(
        Path(record["output"]),
        Path(record["reference"]),
        text=tuple(map(Path, record["text"])),
        save_reference=Path(saved) if saved else None,
        **{name: record[name] for name in ("tokens", "window", "seed")},
    )


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


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a record that `asdict` made."""
    estimates = {name: Estimate(**estimate) for name, estimate in record["estimates"].items()}
    return Evaluation(**{**record, "estimates": estimates})
