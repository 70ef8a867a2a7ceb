"""`mint evaluate`: the figures mean what they say, live or from a file, here or in a process apart."""

import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx.utils import tree_map
from mlx_lm import convert
from mlx_lm.utils import load_model
from scipy.special import log_softmax

from mint import evaluate, quantize
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.core.progress import Progress, ignore
from mint.core.sizes import format_size
from mint.quality.compare import compare
from mint.quality.evaluate import evaluate_in_child
from mint.quality.evaluation import Evaluation, Question
from mint.quality.reference_file import read_reference
from mint.run.blas import find_openblas, preloading
from tests.worlds.gguf_world import write_gguf

SIZE = 64, 8  # tokens, window


def _question(
    output: Path, reference: Path, *text: Path, save: Path | None = None, seed: int | None = None
) -> Question:
    tokens, window = (None, None) if reference.is_file() else SIZE
    return Question(output, reference, text, tokens, window, seed, save)


def _evaluate(output: Path, reference: Path, *text: Path, **options: Path | int) -> Evaluation:
    """The evaluation in this process, whatever BLAS there is."""
    question = _question(output, reference, *text, **options)  # type: ignore[arg-type]
    question.check()
    return compare(question, ignore)


@pytest.fixture(scope="module")
def converted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The llama as `mlx_lm.convert` quantizes it, by bits."""
    folder = tmp_path_factory.mktemp("converted")
    for bits in (2, 4, 8):
        convert(str(llama), str(folder / str(bits)), quantize=True, q_bits=bits, q_group_size=32)
    return {bits: folder / str(bits) for bits in (2, 4, 8)}


@pytest.fixture(scope="module")
def saved(llama: Path, converted: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference file of the llama."""
    path = tmp_path_factory.mktemp("saved") / "reference.safetensors"
    _evaluate(converted[4], llama, save=path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The budget is spent where the loss of a model is largest. " * 12)
    return path


def _log_probabilities(folder: Path, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """The predictions of mlx_lm's model in the folder, in float32, (S, L-1, V)."""
    model = load_model(folder, lazy=True)[0]
    model.update(
        tree_map(lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    )
    logits = np.asarray(model(mx.array(tokens[:, :-1])))
    normal: npt.NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=-1)
    return normal


def test_figures_are_those_of_mlx_lms_own_models(llama: Path, converted: dict[int, Path], saved: Path) -> None:
    estimates = _evaluate(converted[4], saved).estimates
    tokens = read_reference(saved).tokens
    p, q = _log_probabilities(llama, tokens), _log_probabilities(converted[4], tokens)
    kl = (np.exp(p) * (p - q)).sum(-1)
    following = tokens[:, 1:, None]
    nll = {"reference_": -np.take_along_axis(p, following, -1), "": -np.take_along_axis(q, following, -1)}
    assert estimates["kl_mean"].value == pytest.approx(kl.mean(), rel=1e-3)
    for name, percent in {"kl_median": 50, "kl_p99": 99, "kl_p99.9": 99.9}.items():
        assert estimates[name].value == pytest.approx(np.percentile(kl, percent), rel=1e-2)
    assert estimates["top1_agreement"].value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    for prefix, costs in nll.items():
        assert estimates[f"{prefix}perplexity"].value == pytest.approx(np.exp(costs.mean()), rel=1e-4)
        median = np.exp(np.median(costs[..., 0].mean(-1)))
        assert estimates[f"{prefix}median_perplexity"].value == pytest.approx(median, rel=1e-4)
    assert all(figure.low <= figure.value <= figure.high for figure in estimates.values())


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "glm4_moe", "gpt_oss", "jamba", "mamba2", "qwen3_next"])
def test_a_model_against_itself_differs_by_less_than_its_noise(name: str, make_model: Callable[..., Path]) -> None:
    folder = make_model(name)
    estimates = _evaluate(folder, folder).estimates
    assert abs(estimates["kl_mean"].value) < 1e-6
    assert estimates["kl_mean"].value < estimates["noise_floor"].value / 10
    assert estimates["top1_agreement"].value == 1
    assert estimates["perplexity"].value == pytest.approx(estimates["reference_perplexity"].value, rel=1e-6)


def test_more_bits_mean_less_kl(converted: dict[int, Path], saved: Path) -> None:
    kl = [_evaluate(converted[bits], saved).estimates["kl_mean"].value for bits in (2, 4, 8)]
    assert kl[0] > kl[1] > kl[2] > read_reference(saved).noise.mean() / 10


def test_a_saved_reference_gives_the_figures_of_the_live_one(
    llama: Path, converted: dict[int, Path], saved: Path
) -> None:
    live, cached = _evaluate(converted[2], llama), _evaluate(converted[2], saved)
    assert replace(live, seconds=0, peak_rss_bytes=0) == replace(cached, seconds=0, peak_rss_bytes=0)


def test_a_folder_that_mint_wrote_is_evaluated(llama: Path, saved: Path, tmp_path: Path) -> None:
    quantize(llama, "400kB", tmp_path / "out")
    estimates = _evaluate(tmp_path / "out", saved).estimates
    assert estimates["noise_floor"].value < estimates["kl_mean"].value < 1


def test_text_is_compared_in_windows(llama: Path, converted: dict[int, Path], text: Path) -> None:
    evaluation = _evaluate(converted[4], llama, text)
    assert (evaluation.sequences, evaluation.tokens, evaluation.text) == (8, 64, str(text))
    assert evaluation.estimates["reference_perplexity"].value > 100  # random weights know nothing of English


def test_another_seed_is_another_text(llama: Path, converted: dict[int, Path]) -> None:
    first, again, other = (_evaluate(converted[4], llama, seed=seed).estimates for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_process_apart_finds_the_same(llama: Path, converted: dict[int, Path], saved: Path) -> None:
    steps: list[Progress] = []
    apart = evaluate_in_child(_question(converted[4], saved), "", steps.append)
    here = _evaluate(converted[4], saved)
    for name, estimate in here.estimates.items():
        assert apart.estimates[name].value == pytest.approx(estimate.value, rel=1e-3)
    assert steps[-1].done == steps[-1].total == 8


def test_what_a_process_apart_raises_is_raised_here(llama: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MintError, match="no model"):
        evaluate_in_child(_question(tmp_path, saved), "", ignore)


def test_an_interrupted_process_apart_leaves_nothing(
    llama: Path, converted: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(step: Progress) -> None:
        if step.stage == "reference":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_in_child(_question(converted[4], llama, save=tmp_path / "saved"), "", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_question_and_evaluation_survive_the_way_between_two_processes(converted: dict[int, Path], saved: Path) -> None:
    question = _question(converted[4], saved, save=Path("c"), seed=3)
    evaluation = _evaluate(converted[4], saved)
    assert pickle.loads(pickle.dumps((question, evaluation))) == (question, evaluation)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"output": Path("nowhere")}, "nowhere: no such folder"),
        ({"reference": Path("nowhere")}, "nowhere: no such model or file"),
        ({"tokens": 64, "seed": 1}, "tokens, seed was given"),
    ],
)
def test_a_wrong_question_is_refused_before_any_work(
    options: dict[str, Path | int], complaint: str, llama: Path, saved: Path
) -> None:
    with pytest.raises(MintError, match=complaint):
        evaluate(**{"output": llama, "reference": saved, **options})  # type: ignore[arg-type]


def test_the_same_command_takes_the_reference_that_a_killed_run_saved(
    converted: dict[int, Path], llama: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tokens": 64, "window": 16, "save_reference": tmp_path / "reference"}
    first = evaluate(converted[4], llama, **options)
    assert evaluate(converted[4], llama, **options).estimates == first.estimates
    for other in ({"seed": 1}, {"tokens": 48}, {"save_reference": Path(__file__)}):
        with pytest.raises(MintError, match="exists; needed a new name"):
            evaluate(converted[4], llama, **{**options, **other})


def test_a_reference_with_another_tokenizer_is_refused(saved: Path, make_model: Callable[..., Path]) -> None:
    folder = make_model(tokenizer=True)
    record = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = record["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(MintError, match="its tokenizer knows other tokens"):
        _evaluate(folder, saved)


@pytest.fixture
def halved(make_model: Callable[..., Path]) -> Path:
    """A model of half the vocabulary."""
    folder = make_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 256}))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    halves = {name: array[:256] if array.shape[0] == 512 else array for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halves)
    return folder


def test_a_reference_of_another_vocabulary_is_refused(llama: Path, saved: Path, halved: Path, tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"has 256 tokens, that of the reference .* has 512"):
        _evaluate(halved, saved)
    with pytest.raises(MintError, match=r"has 256 tokens, that of the reference .* has 512"):
        _evaluate(halved, llama, save=tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("is_saved", [True, False])
def test_a_model_that_cannot_be_compared_costs_no_result_of_another(
    llama: Path,
    saved: Path,
    halved: Path,
    converted: dict[int, Path],
    capsys: pytest.CaptureFixture[str],
    position: int,
    is_saved: bool,
) -> None:
    models = [str(converted[8]), str(converted[4])]
    models.insert(position, str(halved))
    reference = [str(saved)] if is_saved else [str(llama), "--tokens", "64", "--window", "8"]
    assert run_command(["evaluate", *models, "--reference", *reference, "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["output"] for result in results] == models
    refused = results.pop(position)
    assert "has 256 tokens" in refused["error"]
    assert refused["passed"] is False
    assert all(result["figures"] for result in results)


def test_the_command_prints_one_object(
    converted: dict[int, Path], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["evaluate", str(converted[4]), "--reference", str(saved), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    figures = {row["figure"]: row for row in record["figures"]}
    assert {"kl_mean", "kl_median", "kl_p99", "kl_p99.9", "noise_floor", "top1_agreement", "perplexity"} <= set(figures)
    assert figures["kl_mean"]["low"] <= figures["kl_mean"]["value"] <= figures["kl_mean"]["high"]
    assert (record["sequences"], record["tokens"], record["seed"]) == (8, 64, 0)


def test_several_models_and_a_gguf_file_are_compared_with_one_pass_of_the_original(
    llama: Path, converted: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in llama.glob("tokenizer*"):  # beside the GGUF file, whose own tokens are invented
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_gguf(llama, tmp_path / "llama.gguf")
    models = [str(converted[8]), str(converted[2]), str(tmp_path / "llama.gguf")]
    options = ["--reference", str(llama), "--tokens", "64", "--window", "8", "--progress", "json"]
    assert run_command(["evaluate", *models, *options, "--json"]) == 0
    answer = capsys.readouterr()
    results = json.loads(answer.out)["results"]
    kl = [result["figures"][0]["value"] for result in results]
    assert kl[2] < kl[0] < kl[1]
    assert [result["reference"] for result in results] == [str(llama)] * 3
    assert results[0]["verdict"] == "hardly distinguishable from the original"
    stages = [json.loads(line)["stage"] for line in answer.err.splitlines() if '"stage"' in line]
    assert stages.count("load") == 3  # between two models: no finished pass stands still on the screen
    assert stages.index("compare") > max(at for at, stage in enumerate(stages) if stage == "reference")


def test_a_missing_model_is_named_before_the_first_one_runs(
    llama: Path, converted: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["evaluate", str(converted[8]), "./nowhere", "--reference", str(llama)]) == 1
    error = capsys.readouterr().err
    assert "nowhere: no such folder" in error
    assert "reference:" not in error


def test_own_text_is_written_once_for_a_model_a_size_and_a_seed(
    converted: dict[int, Path], make_model: Callable[..., Path]
) -> None:
    model, answers = make_model(), []
    for seed in (0, 0, 1):
        stages: list[str] = []
        question = _question(converted[8], model, seed=seed)
        answer = compare(question, lambda step, stages=stages: stages.append(step.stage))  # type: ignore[misc]
        answers.append(("write text" in stages, answer.estimates["reference_perplexity"]))
    (first, again, other) = answers
    assert (first[0], again[0], other[0]) == (True, False, True)
    assert first[1] == again[1] != other[1]


def test_people_get_a_verdict_in_words(
    converted: dict[int, Path], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["evaluate", str(converted[8]), "--reference", str(saved)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("evaluate 8 (")
    assert "hardly distinguishable from the original: KL " in out
    assert "64 tokens written by the reference model" in out


def test_people_get_several_models_in_one_table_the_closest_first(
    converted: dict[int, Path], saved: Path, halved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [converted[2], halved, converted[8], converted[4]]
    assert run_command(["evaluate", *map(str, models), "--reference", str(saved)]) == 1
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", head) == ["model", "size", "KL", "same first word", "perplexity", "in words"]
    assert [row.split("  ")[0] for row in rows[:4]] == [str(converted[bits]) for bits in (8, 4, 2)] + [str(halved)]
    nbytes = sum(file.stat().st_size for file in converted[8].glob("*.safetensors"))
    assert re.match(rf"{converted[8]}  +{format_size(nbytes)}  +\S+ \(\S+ to \S+\)  +\d+%  +[\d.]+  +hardly", rows[0])
    assert rows[3].endswith("not compared")
    assert [row.split()[0] for row in rows[4:] if row] == ["noise", "text", "ERROR"]
    assert str(halved) in rows[-1]


def test_several_models_have_all_figures_below_their_table_on_request(
    converted: dict[int, Path], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(converted[4]), str(converted[8])]
    assert run_command(["evaluate", *models, "--reference", str(saved), "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.count("same first word") == 1
    assert out.count("kl_p99.9") == len(models)


def test_a_preloaded_openblas_is_what_mlx_uses() -> None:
    library = find_openblas()
    if not library:
        pytest.skip("no system OpenBLAS to preload")
    command = [sys.executable, "-c", "from mint.run.blas import multiplies_slowly; print(multiplies_slowly())"]
    result = subprocess.run(command, env=preloading(library), capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
