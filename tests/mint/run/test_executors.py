"""`--cluster`: found through an entry point, refused in words, and the same bytes as without."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.settings import TOKEN_VARIABLE, Address
from cluster.transport.connect import settings
from mint.core.errors import MintError
from mint.run.executor import Executor, executing, in_process

ELSEWHERE = Address("10.0.0.1", 6379)
MINT = (sys.executable, "-m", "mint")


def test_without_an_address_the_work_stays_in_this_process(tmp_path: Path) -> None:
    with executing("", tmp_path) as execution:
        assert execution == (tmp_path, in_process)


def test_without_an_address_nothing_of_ray_is_imported(llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mint.cli.main import run_command;"
        f"run_command(['analyze', {str(llama)!r}, '-o', {str(tmp_path / 'a.mint')!r}]);"
        "print([name for name in ('ray', 'cluster') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_where_nothing_can_work_elsewhere_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    with pytest.raises(MintError, match=r"needed: pip install 'mint-mlx\[cluster\]'"), executing("local", tmp_path):
        pass


def test_one_machine_has_nobody_to_share_with(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"--share: .* needed: --cluster"), executing("", tmp_path, share=True):
        pass


def test_what_is_asked_for_reaches_the_place_that_offers_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[object, ...]] = []
    notes: list[str] = []

    class Offer:
        def load(self) -> object:
            @contextmanager
            def place(
                address: str, model: Path, dtype: str, loader: str, *, share: bool, on_note: Callable[[str], object]
            ) -> Iterator[tuple[Path, Executor]]:
                calls.append((address, model, dtype, loader, share))
                on_note("decided")
                yield model, in_process

            return place

    monkeypatch.setattr(metadata, "entry_points", lambda group: (Offer(),))
    for share in (False, True):
        with executing("10.0.0.1", tmp_path, "float16", "mlx_lm", share=share, on_note=notes.append) as execution:
            assert execution == (tmp_path, in_process)
    assert calls == [("10.0.0.1", tmp_path, "float16", "mlx_lm", share) for share in (False, True)]
    assert notes == ["decided"] * 2


def test_a_cluster_is_not_joined_without_a_token_that_only_its_owner_can_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path / "config"))
    with pytest.raises(MintError, match="no token"):
        settings(ELSEWHERE, tmp_path)
    token = tmp_path / "secret"
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv(TOKEN_VARIABLE, str(token))
    with pytest.raises(MintError, match="others may read this token; needed: chmod 600"):
        settings(ELSEWHERE, tmp_path)
    token.chmod(0o600)
    assert settings(ELSEWHERE, tmp_path)["RAY_AUTH_MODE"] == "token"


def test_a_cluster_of_one_machine_has_a_new_secret_token_every_time(tmp_path: Path) -> None:
    tokens = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        path = Path(settings(None, tmp_path / name)[TOKEN_VARIABLE])
        assert path.stat().st_mode & 0o777 == 0o600
        tokens.add(path.read_text())
    assert len(tokens) == 2


@pytest.mark.skipif(not find_spec("ray"), reason="needs ray: pip install 'mint-mlx[cluster]'")
def test_a_local_cluster_writes_the_same_analysis(llama: Path, tmp_path: Path) -> None:
    for name, more in (("alone", []), ("cluster", ["--cluster", "local"])):
        command = [*MINT, "analyze", str(llama), "--output", str(tmp_path / name), *more]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "cluster").read_bytes() == (tmp_path / "alone").read_bytes()
