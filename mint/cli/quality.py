"""The commands that run a model: probe its sensitivity, and evaluate a quantized one."""

from pathlib import Path
from typing import Annotated, Any

import mint
from mint.cli import options as opt
from mint.cli.options import argument, option
from mint.cli.outputs import check_names, described
from mint.cli.terminal.screen import Answer, Overview, Record, Screen


def probe(
    screen: Screen,
    model: opt.Model,
    analysis: Annotated[Path | None, option("", "Its analysis, beside the probes; default: in a cache.")] = None,
    tokens: Annotated[str, option("own|random", "Text that the model writes itself, or random tokens.")] = "own",
    sequences: Annotated[int, option("N", "Sequences for the model to read.")] = 8,
    length: Annotated[int, option("N", "Tokens of a sequence.")] = 64,
    seed: Annotated[int, option("N", "Seed of the tokens.")] = 0,
    probes: Annotated[int | None, option("N", "Probe only the N largest units and infer the others.")] = None,
    base: Annotated[str, option("full|8|6|4", "Bits of all other units; default: as many as fit in memory.")] = "auto",
    dtype: opt.Dtype = "",
    vision: opt.Vision = None,
    requantize: opt.Requantize = False,
    cluster: opt.Cluster = "",
) -> Record:
    """Measure how sensitive the output is to quantizing each unit. Needs no data; run it again to resume.

    Later plans of the same analysis use the result. Takes a fraction of a forward pass for every unit.
    """
    check_names(model, [], [analysis] if analysis else [], requantize=requantize)
    screen.begin(f"probe {described(model)}")
    from mint.run.blas import restart_with_fast_blas

    restart_with_fast_blas()
    from mint.analysis.cached import cached_analysis
    from mint.render.models import probed_record
    from mint.run.executor import measuring_device

    probing = mint.Probing(tokens, sequences, length, seed, probes, base)
    probing.check()
    opening: dict[str, Any] = {"loader": opt.loader(vision), "requantize": requantize}
    with opt.opened(screen, model, dtype, cluster, **opening) as (source, executor):
        path = analysis or cached_analysis(source, device=measuring_device(executor))
        work: dict[str, Any] = {"executor": executor, "on_progress": screen.on_progress, "on_note": screen.note}
        measured = mint.analyze(source, path, **work)
        file = mint.probe_path(path)
        probed = mint.probe(source, measured, file, probing=probing, **work)
    return probed_record(measured, probed, file)


def evaluate(
    screen: Screen,
    outputs: Annotated[
        list[str], argument("OUT...", "Folders of MLX models, mint's or any other, GGUF files, or ids of the hub.")
    ],
    reference: Annotated[
        str, option("MODEL", "The original model: its folder, its id of the hub, or a file of --save-reference.")
    ],
    text: Annotated[
        list[Path], option("FILE", "Compare on this text instead of what MODEL writes itself. May be repeated.")
    ] = opt.NONE,
    tokens: Annotated[int | None, option("N", "Tokens in all; default: 4096 of a text, 2048 of its own.")] = None,
    window: Annotated[int | None, option("N", "Tokens of a sequence; default: 512 of a text, 128 of its own.")] = None,
    seed: Annotated[int | None, option("N", "Seed of the own text; default: 0.")] = None,
    save_reference: Annotated[
        Path | None, option("FILE", "Keep MODEL's predictions, so that the next model is compared without MODEL.")
    ] = None,
    tasks: Annotated[
        Path | None,
        option(
            "FILE", 'Also ask every OUT questions, an object a line: {"question": "2 + 2 =", "choices": ["3", "4"], '
            '"answer": 1}. Needs the extra `tasks`.',
        ),
    ] = None,
) -> Answer | Overview:  # fmt: skip
    """Compare the predictions of quantized models with the original's: KL divergence, agreement, perplexity.

    Every figure comes with a 95 % confidence interval over sequences. noise_floor is the KL that 16-bit arithmetic
    alone causes. --verbose shows all figures. Several models come in one table, the closest first; one that cannot be
    compared is reported with its reason, and the exit code is 1.

    Example: mint evaluate Qwen3-8B-6GB --reference models/Qwen3-8B
    """
    from mint.quality.evaluate import evaluate_all
    from mint.quality.evaluation import Refused
    from mint.render.models import evaluation_record
    from mint.render.summary import comparison, evaluation_summary

    screen.begin(f"evaluate {', '.join(map(described, outputs))} against {described(reference)}")
    evaluations = evaluate_all(
        outputs,
        reference,
        text=text,
        tokens=tokens,
        window=window,
        seed=seed,
        save_reference=save_reference,
        tasks=tasks,
        on_progress=screen.on_progress,
    )
    if len(evaluations) == 1 and isinstance(evaluations[0], Refused):
        raise evaluations[0].error
    answers = [Answer(evaluation_record(evaluation), evaluation_summary(evaluation)) for evaluation in evaluations]
    return answers[0] if len(answers) == 1 else Overview(answers, *comparison(outputs, evaluations))
