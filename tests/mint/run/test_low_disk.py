"""A model of the hub is quantized with the disk of one shard: the same bytes, and nothing is left over."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import mint
from mint.cli.main import run_command
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.progress import Progress
from mint.forecast.forecast import Forecast
from mint.model.checkpoint import shards
from mint.model.remote import outline
from mint.run import stacks
from mint.run.low_disk import streaming
from tests.worlds.encodings import Encoding, bnb_4bit, fp8, gptq, packed, write_encoded
from tests.worlds.hub_world import FakeHub, fake_hub, know
from tests.worlds.zoo import write_model

ID = "Owner/tiny"
RECIPE = mint.Recipe(rounding="nearest")
MATRICES = r"(self_attn|mlp)\..*_proj\.weight$"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub; samples and gaps have few bytes of a shard, as they have of a real one."""
    monkeypatch.setenv("MINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SAMPLE_BYTES", 64)
    monkeypatch.setattr(outline, "_NEAR", 256)
    with fake_hub() as hub:
        know(hub, tmp_path / "hub", monkeypatch)
        yield hub


def _held_bytes() -> int:
    """Bytes of weights that streams hold on the disk."""
    files = (cache_folder() / "streams").rglob("*.safetensors")
    return sum(file.stat().st_blocks * 512 for file in files)


def _check_same(one: Path, other: Path) -> None:
    names = {path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    for name in names - {"README.md", "mint.json", "mint-verified.json"}:  # the card names the model of the hub
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_low_disk_writes_the_same_bytes_and_holds_one_shard(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    folder = write_model(kind, tmp_path / "model", shards=4, tokenizer=True)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    hub.models[ID] = _files(folder)
    hub.is_redirecting, hub.busy = True, 1
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    held: list[int] = []
    notes: list[str] = []
    forecasts: list[Forecast] = []
    result = mint.quantize(
        ID, "5bpw", tmp_path / "out", RECIPE, low_disk=True, on_note=notes.append, on_forecast=forecasts.append,
        on_progress=lambda step: held.append(_held_bytes()),
    )  # fmt: skip
    assert largest / 2 < max(held) < 1.3 * largest
    assert forecasts[0].download_bytes > 1.9 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert largest <= forecasts[0].disk_bytes - result.plan.budget_bytes < 1.3 * largest
    assert any("at most" in note and "on the disk at once" in note for note in notes)
    assert result.verification.passed
    assert not list((cache_folder() / "streams").rglob("*.safetensors"))
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    mint.quantize(folder, "5bpw", tmp_path / "ordinary", RECIPE, analysis=tmp_path / "a.mint")
    _check_same(tmp_path / "out", tmp_path / "ordinary")


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3", "mamba2"])
def test_what_is_measured_does_not_depend_on_the_place_of_the_weights(
    hub: FakeHub, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "BLOCK", 4096)
    folder = write_model(kind, tmp_path / "model", shards=3)
    hub.models[ID] = _files(folder)
    mint.analyze(mint.open_source(folder, loader="mlx_lm"), tmp_path / "whole", rounding="nearest")
    with streaming(ID, loader="mlx_lm") as (source, executor):
        mint.analyze(source, tmp_path / "streamed", rounding="nearest", executor=executor)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("encoding", [packed(), bnb_4bit(), fp8(), gptq(act_order=True)])
def test_low_disk_writes_encoded_weights_as_the_whole_files_give_them(
    hub: FakeHub, tmp_path: Path, encoding: Encoding
) -> None:
    folder = write_model("llama", tmp_path / "model")
    write_encoded(folder, MATRICES, encoding, {"quantization_config": {"quant_method": "of the test"}})
    hub.models[ID] = _files(folder)
    mint.quantize(ID, "5bpw", tmp_path / "out", RECIPE, low_disk=True)
    mint.quantize(folder, "5bpw", tmp_path / "ordinary", RECIPE, analysis=tmp_path / "a.mint")
    _check_same(tmp_path / "out", tmp_path / "ordinary")


@pytest.mark.parametrize(
    ("encoding", "dtype", "message"),
    [(fp8("F8_E5M2"), "", "tensors of F8_E5M2.* needed: no low_disk"), (None, "float16", "cast of its weights")],
)
def test_weights_that_are_read_before_they_are_needed_are_refused(
    hub: FakeHub, tmp_path: Path, encoding: Encoding | None, dtype: str, message: str
) -> None:
    folder = write_model("llama", tmp_path / "model")
    if encoding:
        write_encoded(folder, MATRICES, encoding, {"quantization_config": {"quant_method": "fp8"}})
    hub.models[ID] = _files(folder)
    with pytest.raises(MintError, match=message):
        mint.quantize(ID, "5bpw", tmp_path / "out", replace(RECIPE, dtype=dtype), low_disk=True)
    assert not _held_bytes()


@pytest.mark.parametrize("stage", ["analyze", "assemble"])
def test_low_disk_resumes_after_an_interruption_and_survives_cut_connections(
    hub: FakeHub, tmp_path: Path, stage: str
) -> None:
    folder = write_model("llama", tmp_path / "model", shards=4)
    hub.models[ID] = _files(folder)
    steps = 0

    def interrupt(step: Progress) -> None:
        nonlocal steps
        steps += step.stage == stage
        if steps == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mint.quantize(ID, "5bpw", tmp_path / "out", RECIPE, low_disk=True, on_progress=interrupt)
    assert not _held_bytes()
    hub.breaks = dict.fromkeys((name for name in hub.models[ID] if name.endswith(".safetensors")), 1000)
    notes: list[str] = []
    mint.quantize(ID, "5bpw", tmp_path / "out", RECIPE, low_disk=True, on_note=notes.append)
    assert any(note.startswith("resumes: 7 of") for note in notes), notes
    mint.quantize(folder, "5bpw", tmp_path / "ordinary", RECIPE, analysis=tmp_path / "a.mint")
    _check_same(tmp_path / "out", tmp_path / "ordinary")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "good"], "runs the whole model; needed: --quality fast"),
        (["--quality", "fast", "--probe"], "--probe runs the whole model"),
        (["--quality", "fast", "--cluster", "local"], "needed: no --cluster"),
    ],
)
def test_what_needs_all_weights_is_refused_before_anything_is_asked(
    hub: FakeHub, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["quantize", ID, "--budget", "5bpw", "--low-disk", *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not hub.tokens


def test_a_path_is_refused_and_a_cached_model_is_read_from_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "model")
    with pytest.raises(MintError, match="is a path, nothing has to be downloaded"), streaming(folder):
        pass
    hub.models[ID] = _files(folder)
    whole = mint.open_source(ID)
    hub.asked.clear()
    with streaming(ID) as (source, executor):
        assert source == whole
        assert not executor.lacking
    assert not hub.asked


def test_two_processes_do_not_stream_one_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.models[ID] = _files(write_model("llama", tmp_path / "model"))
    with (
        streaming(ID),
        pytest.raises(MintError, match=r"another process streams Owner/tiny to .*wait for it"),
        streaming(ID),
    ):
        pass
