"""The command that tells how good a model is."""

from pathlib import Path
from typing import Annotated

import typer

from mint.options import Json
from mint.show import Screen


def evaluate(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an MLX model: mint's or any other.")],
    reference: Annotated[
        Path,
        typer.Option(metavar="MODEL", help="Folder of the original model, or a file that --save-reference wrote."),
    ],
    text: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Compare on this text instead of what MODEL writes itself. May be repeated."),
    ] = [],  # noqa: B006, typer copies it
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens in all; default: 4096 of a text, 2048 of own text.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a sequence; default: 512 of a text, 128 of own text.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="What decides the own text; default: 0.")] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what MODEL says, so that the next model is compared without MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a quantized model's predictions with the original's: KL divergence, agreement, perplexity.

    Every figure comes with a 95 % confidence interval over sequences. noise_floor is the KL that 16-bit arithmetic
    makes of the original alone.

    Example: mint evaluate Qwen3-8B-6GB --reference models/Qwen3-8B
    """
    from mint.evaluate import evaluate as run
    from mint.records import evaluation_record

    with Screen(as_json) as screen:
        evaluation = run(
            output,
            reference,
            text=text,
            tokens=tokens,
            window=window,
            seed=seed,
            save_reference=save_reference,
            on_progress=screen.on_progress,
        )
    screen.answer(evaluation_record(evaluation))
