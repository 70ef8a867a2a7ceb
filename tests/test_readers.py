"""Everything that MINT reads back may be damaged: a cache begins anew, and a document is refused by name."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import mint
from cluster.ops.certificates import AUTHORITY_KEY, make_certificates
from cluster.service.commands.serve import _secret
from cluster.service.data.database import connect
from cluster.service.http.audit import Audit
from cluster.service.operations.backup import _files_of
from cluster.service.operations.config_file import read_defaults
from cluster.service.work.folder_lock import noted
from cluster.settings import TLS_AUTHORITY, checked_token
from cluster.transport.throughput import rates
from mint.analysis.analysis import MAGIC, read_analysis
from mint.analysis.probes.probe_file import read_probes
from mint.cli.main import app
from mint.cli.settings import option_defaults, settings_file
from mint.client.http import token_of
from mint.core import files
from mint.core.cache import recall
from mint.core.errors import MintError, fixable
from mint.core.journal import Journal, remove_stray
from mint.exports.source_card import read_source_card
from mint.forecast import machine
from mint.model.checkpoint.manifest import read_manifest
from mint.model.checkpoint.shards import INDEX_NAME, read_index, read_shards
from mint.model.checkpoint.verified import VERIFIED_NAME, is_verified
from mint.model.config import check_config
from mint.model.hub_download import download_rate
from mint.model.module_tree import has_own_code
from mint.model.opening.kinds import _base
from mint.plan.plan import read_plan
from mint.plan.rules import read_locks
from mint.quality.reference_file import read_reference
from mint.quality.sequences import plain_text
from mint.quality.tasks import questions_in
from mint.render.report.subjects import read_subjects
from tools.attack.mutations import DIGITS, NESTED
from tools.attack.parsers import Made, make

ROOT = Path(__file__).parents[1]
MOST = 1 << 22  # bytes that are read whole, in these tests


def _link(target: str) -> Callable[[Path, bytes], None]:
    return lambda path, text: path.symlink_to(target)


def _write(damage: Callable[[bytes], bytes]) -> Callable[[Path, bytes], object]:
    return lambda path, text: path.write_bytes(damage(text))


def _huge(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    os.truncate(path, 2 * MOST)


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "empty": _write(lambda text: b""),
    "zeros": _write(lambda text: bytes(len(text) or 64)),
    "half": _write(lambda text: text[: len(text) // 2]),
    "zero tail": _write(lambda text: text + bytes(64)),
    "binary": _write(lambda text: bytes(range(255, 0, -1))),
    "not UTF-8": _write(lambda text: b"\xff" + text),
    "list": _write(lambda text: b"[]"),
    "object": _write(lambda text: b"{}"),
    "number": _write(lambda text: b"-1"),
    "not a number": _write(lambda text: b"NaN"),
    "many digits": _write(lambda text: DIGITS.encode()),
    "nested": _write(lambda text: NESTED.encode()),
    "nested TOML": _write(lambda text: f"a = {NESTED}".encode()),
    "nested YAML": _write(lambda text: f"---\na: {NESTED}\n---\n".encode()),
    "folder": lambda path, text: path.mkdir(),
    "loop": lambda path, text: path.symlink_to(path.name),
    "nowhere": _link("nowhere/at/all"),
    "endless": _link("/dev/zero"),
    "huge": _huge,
}


def spoil(damage: str, path: Path, text: bytes) -> None:
    """Put a damaged file at `path`, whose content was `text`."""
    path.unlink(missing_ok=True)
    DAMAGES[damage](path, text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_READ", MOST)


Reader = tuple[str, Callable[[Made], bytes], Callable[[Path], object]]


def _bytes(text: bytes) -> Callable[[Made], bytes]:
    return lambda made: text


def _authority(path: Path) -> object:
    other = TLS_AUTHORITY if path.name == AUTHORITY_KEY else AUTHORITY_KEY
    path.with_name(other).write_bytes(b"-----BEGIN EC PRIVATE KEY-----")
    return make_certificates(["a"], path.parent)


def _private(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def read_private(path: Path) -> object:
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
        return read(path)

    return read_private


def _settings(path: Path) -> object:
    settings_file().unlink(missing_ok=True)
    settings_file().symlink_to(path)
    return option_defaults(app)


def _serve_defaults(path: Path) -> object:
    group = typer.main.get_command(app)
    command = group.commands["serve"]  # type: ignore[attr-defined]
    return read_defaults(path, typer.Context(command))


# the name of each document, its undamaged content, and what reads it
DOCUMENTS: dict[str, Reader] = {
    "analysis": ("a.mint", lambda made: made.analysis.read_bytes(), read_analysis),
    "probes": ("a.probe", lambda made: made.probes.read_bytes(), read_probes),
    "journal": ("j", _bytes(MAGIC), lambda path: Journal(path, MAGIC, {"a": 1}).__exit__()),
    "stray journal": ("a.partial", _bytes(MAGIC), lambda path: remove_stray(path.with_name("a"), MAGIC)),
    "plan": ("plan.json", lambda made: made.plan.read_bytes(), read_plan),
    "subject": ("plan.json", lambda made: made.plan.read_bytes(), lambda path: read_subjects([path], mint.Recipe())),
    "manifest": (
        "mint.json", lambda made: (made.output / "mint.json").read_bytes(), lambda path: read_manifest(path.parent)
    ),
    "reference": ("r", lambda made: made.reference.read_bytes(), read_reference),
    "locks": ("locks.json", _bytes(b'{"*": "8/64"}'), read_locks),
    "tasks": ("tasks", _bytes(b'{"question": "a", "choices": ["b"], "answer": 0}\n'), questions_in),
    "text": ("text", _bytes(b"a text\n"), plain_text),
    "config": (
        "config.json", lambda made: (made.model / "config.json").read_bytes(), lambda path: check_config(path.parent)
    ),
    "index": (INDEX_NAME, _bytes(b'{"weight_map": {"a": "b"}}'), lambda path: read_index(path.parent)),
    "shard": (
        "model.safetensors",
        lambda made: (made.model / "model.safetensors").read_bytes()[:5000],
        lambda path: read_shards(path.parent),
    ),
    "settings": ("mint.toml", _bytes(b"quality = 'fast'\n"), _settings),
    "settings of the service": ("serve.toml", _bytes(b"port = 1\n"), _serve_defaults),
    "token": ("token", _bytes(b"abc"), _private(token_of)),
    "token of a cluster": ("token", _bytes(b"abc"), _private(checked_token)),
    "secret": ("secret", _bytes(b"a" * 20), _private(lambda path: _secret("https://a/b", path))),
    "authority": (TLS_AUTHORITY, _bytes(b"-----BEGIN CERTIFICATE-----"), _authority),
    "key": (AUTHORITY_KEY, _bytes(b"-----BEGIN EC PRIVATE KEY-----"), _authority),
    "database": ("service.db", _bytes(b"SQLite format 3\0"), lambda path: connect(f"sqlite:///{path}").close()),
    "database to restore": ("service.db", _bytes(b"SQLite format 3\0"), _files_of),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_damaged_document_is_read_or_refused_by_name(name: str, damage: str, made: Made, tmp_path: Path) -> None:
    file, content, read = DOCUMENTS[name]
    spoil(damage, tmp_path / file, content(made))
    try:
        read(tmp_path / file)
    except MintError as error:
        message = str(error)
    except OSError as error:
        message = fixable(error)
    else:
        return
    assert file in message or str(tmp_path) in message
    assert len(message) < 1000


def _held(path: Path) -> int:
    """The process that holds a lock, whose file a writer has left in any state."""
    with noted(path.with_name("held")), noted(path) as pid:
        return pid


# the name of each file that may begin anew, its undamaged content, and the question with the answer of a fresh start
CACHES: dict[str, tuple[str, bytes, Callable[[Path], object], Any]] = {
    "rates of this machine": ("r", b'{"measured": 1.0}', lambda path: recall(path, machine._rates), None),
    "rate of downloads": ("downloads/rate.json", b'{"bytes_per_second": 5.0}', lambda path: download_rate(), 0.0),
    "rates of a node": ("cluster/rates.json", b'{"measure": 5.0', lambda path: rates(), {}),
    "verification": (VERIFIED_NAME, b"{}", lambda path: is_verified(path.parent), False),
    "own code": ("tokenizer_config.json", b"{}", lambda path: has_own_code(path.parent), False),
    "card": ("README.md", b"---\nlicense: mit\n", lambda path: read_source_card(path.parent).metadata, {}),
    "adapter": ("adapter_config.json", b"{", lambda path: _base(path.parent), ""),
    "audit": ("audit", b'{"a": 1}', lambda path: [e for e in Audit(path, 1).latest("", 9) if e.get("a") != 1], []),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CACHES)
def test_a_damaged_cache_begins_anew(
    name: str, damage: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content, read, fresh = CACHES[name]
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / "mint.json").write_bytes((made.output / "mint.json").read_bytes())
    spoil(damage, tmp_path / file, content)
    assert read(tmp_path / file) in (fresh, [{}])


# files that read in a way of their own, and why they may; all others use those of `mint.core`
OWN_READERS = {
    "mint/assembly/assemble.py": "in test_compensate.py", "mint/quality/evaluate.py": "a child of MINT",
    "mint/quality/sequences.py": "recalled", "mint/analysis/probes/prober.py": "within from_pieces",
    "mint/analysis/unit_jobs.py": "within from_pieces", "mint/cli/settings.py": "DOCUMENTS",
    "mint/client/client.py": "within reading", "mint/core/files.py": "the readers themselves",
    "mint/core/journal.py": "DOCUMENTS", "mint/core/memory.py": "the system's", "mint/core/version.py": "pip's",
    "mint/exports/source_card.py": "CACHES", "mint/forecast/machine.py": "CACHES",
    "mint/kernels/code_cache.py": "MINT's own code", "mint/kernels/compiled.py": "in test_code_cache.py",
    "mint/kernels/warmup.py": "the system's",
    "mint/model/checkpoint/shards.py": "fuzzed", "mint/model/hub_download.py": "CACHES",
    "mint/model/remote/outline.py": "a checked config", "mint/model/storages/bitsandbytes.py": "fuzzed",
    "mint/quality/compare.py": "a checked config", "mint/quality/reference_file.py": "DOCUMENTS",
    "mint/quality/tasks.py": "DOCUMENTS", "mint/render/report/report.py": "MINT's own page",
    "mint/run/child.py": "a child of MINT", "mint/targets/devices.py": "MINT's own table",
    "mint/targets/loaders.py": "MINT's own table", "cluster/head/handshake.py": "within reading",
    "cluster/ops/machine.py": "the system's", "cluster/ops/nodes.py": "a log, of any bytes",
    "cluster/service/http/audit.py": "CACHES", "cluster/service/operations/config_file.py": "DOCUMENTS",
    "cluster/service/store/model_roots.py": "bounded before",
    "cluster/service/subprocesses/plan_child.py": "the parent's",
    "cluster/service/work/folder_lock.py": "recalled", "cluster/transport/executor.py": "a checked config",
    "cluster/transport/messages.py": "fuzzed", "cluster/transport/throughput.py": "CACHES",
    "cluster/transport/worker.py": "compared alone",
}  # fmt: skip
_READS = re.compile(
    r"\.read_(?:text|bytes)\(|\bjson\.loads\(|tomllib\.loads\(|np\.load\(|unpackb\(|safe_load\(|pickle\.loads\(|\bload_file\("
)


def test_every_reader_of_its_own_is_known() -> None:
    paths = [path for room in ("mint", "cluster") for path in (ROOT / room).rglob("*.py")]
    own = {path.relative_to(ROOT).as_posix() for path in paths if _READS.search(path.read_text())}
    assert own == OWN_READERS.keys()
