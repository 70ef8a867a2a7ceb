"""What the stages of a job refuse and tell, without a runner."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.service.work.progress_events import EVERY_SECONDS, Telling
from cluster.service.work.stages import _refuse_tokenizer_code
from mint.core.errors import MintError
from mint.core.progress import Progress


def test_a_tokenizer_that_needs_its_own_code_is_refused_and_its_code_never_run(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    _refuse_tokenizer_code(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    with pytest.raises(MintError, match="never run"):
        _refuse_tokenizer_code(folder)
    assert not (tmp_path / "ran").exists()


def test_progress_is_told_at_most_twice_a_second_and_the_ends_of_stages_always() -> None:
    told: list[tuple[float, dict[str, Any]]] = []
    now = 0.0
    telling = Telling(lambda kind, body: told.append((now, dict(body))), "here", lambda: now)
    for stage in ("analyze", "assemble"):
        for done in range(101):
            telling.on_progress(Progress(stage, done, 100, f"unit {done}"))
            now += 0.03
    for stage in ("analyze", "assemble"):
        mine = [(moment, body) for moment, body in told if body["stage"] == stage]
        assert [body["done"] for _, body in mine][:: len(mine) - 1] == [0, 100]
        times = [moment for moment, _ in mine[:-1]]
        assert all(later - earlier >= EVERY_SECONDS for earlier, later in itertools.pairwise(times))
