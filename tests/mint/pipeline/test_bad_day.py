"""Real processes, really killed; a disk that is really full."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint.model.source import open_source
from mint.plan.size_range import possible_bytes
from tests.conftest import own_cache
from tests.worlds.zoo import write_model

MINT = (sys.executable, "-m", "mint")


def _command(model: Path, output: Path, budget: int) -> list[str]:
    return [*MINT, "quantize", str(model), "--budget", f"{budget}B", "--output", str(output)]


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "MINT_CACHE": str(own_cache(cache))}


def _folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_moe", tmp_path_factory.mktemp("model") / "qwen3_moe", shards=2, tokenizer=True)


@pytest.fixture(scope="module")
def budget(model: Path) -> int:
    source = open_source(model)
    return possible_bytes(source.units, source.parameters)[1] // 2


@pytest.fixture(scope="module")
def undisturbed(model: Path, budget: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder that a run writes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(_command(model, folder / "out", budget), env=_environment(folder / "cache"), check=True)
    return _folder_bytes(folder / "out")


def _heed_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_killed_at_random_moments_the_same_command_ends_with_the_same_bytes(
    sent: signal.Signals,
    code: int,
    model: Path,
    budget: int,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    moments = random.Random(sent)
    units = len(open_source(model).units)
    command, environment = _command(model, tmp_path / "out", budget), _environment(tmp_path / "cache")
    command.insert(len(MINT), "--verbose")  # a line on stderr for every unit measured or written
    interrupted = 0
    for _ in range(5):
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_heed_interrupts,
        )
        assert process.stderr
        for _ in range(moments.randint(1, units)):
            process.stderr.readline()
        process.send_signal(sent)
        _, complaint = process.communicate()
        assert process.returncode in (code, -sent, 0)
        assert b"Traceback" not in complaint
        interrupted += process.returncode != 0
        if (tmp_path / "out").exists():
            break
    assert interrupted
    if not (tmp_path / "out").exists():
        subprocess.run(command, env=environment, check=True)
    assert _folder_bytes(tmp_path / "out") == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system needs mount, which is not permitted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_is_refused_before_the_work_and_the_command_succeeds_elsewhere(
    model: Path, budget: int, small_disk: Path, tmp_path: Path
) -> None:
    command = _command(model, small_disk / "out", budget)
    result = subprocess.run(command, env=_environment(tmp_path / "cache"), capture_output=True, text=True)
    assert result.returncode == 1
    assert "free, needed" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (small_disk / "out").exists()
    command = _command(model, tmp_path / "out", budget)
    assert subprocess.run(command, env=_environment(tmp_path / "cache")).returncode == 0


def test_a_disk_that_fills_up_on_the_way_never_leaves_a_model(
    model: Path, budget: int, small_disk: Path, tmp_path: Path
) -> None:
    """The analysis does not fit: no free-space check can know that before."""
    environment = _environment(small_disk / "cache")
    status = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"\0" * (status.f_bavail * status.f_frsize - 16_384))
    result = subprocess.run(_command(model, tmp_path / "out", budget), env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    (small_disk / "ballast").unlink()
    assert subprocess.run(_command(model, tmp_path / "out", budget), env=environment).returncode == 0


def test_an_existing_output_is_refused_before_anything_is_read(model: Path, budget: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    command = _command(model, tmp_path / "out", budget)
    result = subprocess.run(command, env=_environment(tmp_path / "cache"), capture_output=True, text=True)
    assert result.returncode == 1
    assert "exists; nothing is ever overwritten" in result.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kernels"]
