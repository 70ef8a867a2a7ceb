"""The commands that run a model: how sensitive it is, how good a quantized one is."""

from pathlib import Path
from typing import Annotated

import typer

from mint.cli import options as opt
from mint.cli.screen import Screen


def probe(
    model: opt.Model,
    analysis: Annotated[
        Path | None,
        typer.Option(help="Its analysis; probes are kept beside it. Default: the one that mint quantize remembers."),
    ] = None,
    written: Annotated[
        str, typer.Option("--tokens", metavar="own|random", help="Text that the model writes itself, or random tokens.")
    ] = "own",
    sequences: Annotated[int, typer.Option(metavar="N", help="Sequences that the model sees.")] = 8,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of a sequence.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="What decides the tokens.")] = 0,
    probes: Annotated[
        int | None, typer.Option(metavar="N", help="Probe only the N largest units; the rest is inferred from them.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            metavar="full|8|6|4",
            help="What the other units are stored in meanwhile; default: full precision where that fits in memory, "
            "else 8 bits, else fewer.",
        ),
    ] = "auto",
    dtype: opt.Dtype = "",
    cluster: opt.Cluster = "",
    as_json: opt.Json = False,
) -> None:
    """Measure how far the output moves when each unit alone is stored coarsely. No data; resumes by itself.

    Later plans of the same analysis use what was measured. Takes a fraction of a forward pass for every unit.
    """
    from mint.run.blas import restart_with_fast_blas

    restart_with_fast_blas()
    from mint.analysis.analyze import analyze
    from mint.analysis.probes.probe import probe as run
    from mint.analysis.probes.probe_file import probe_path
    from mint.analysis.probes.prober import Probing
    from mint.model.source import open_source
    from mint.pipeline import cached_analysis
    from mint.render.models import probed_record
    from mint.run.executor import measuring_device
    from mint.run.executors import executing

    probing = Probing(written, sequences, length, seed, probes, base)
    probing.check()
    with (
        Screen(as_json) as screen,
        executing(cluster, model, opt.checked_dtype(dtype), on_progress=screen.on_progress) as (folder, executor),
    ):
        source = open_source(folder, dtype=opt.checked_dtype(dtype))
        path = analysis or cached_analysis(source, device=measuring_device(executor))
        measured = analyze(source, path, executor=executor, on_progress=screen.on_progress)
        probed = run(
            source, measured, probe_path(path), probing=probing, executor=executor, on_progress=screen.on_progress
        )
    screen.answer(probed_record(measured, probed, probe_path(path)))


def evaluate(
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder of an MLX model, mint's or any other, or an id of the hub.")
    ],
    reference: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The original model: its folder, its id of the hub, or a file that --save-reference wrote.",
        ),
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
    as_json: opt.Json = False,
) -> None:
    """Compare a quantized model's predictions with the original's: KL divergence, agreement, perplexity.

    Every figure comes with a 95 % confidence interval over sequences. noise_floor is the KL that 16-bit arithmetic
    makes of the original alone.

    Example: mint evaluate Qwen3-8B-6GB --reference models/Qwen3-8B
    """
    from mint.quality.evaluate import evaluate as run
    from mint.render.models import evaluation_record

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
