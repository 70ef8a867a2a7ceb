"""Heavy packages have owners, and commands start without them. `lint-imports` holds the direction of all imports."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWNERS = {
    "mlx_lm": {
        "mint/model/module_tree.py",
        "mint/model/loaders/loader.py",
        "mint/model/opening/readers.py",
        "mint/assembly/stock_child.py",
        "mint/quality/tasks.py",
    },
    "mlx_vlm": {"mint/model/loaders/vision.py"},
    "ray": {"cluster/transport", "cluster/head/handshake.py"},
    "grpc": {"cluster/head/handshake.py"},
    "cryptography": {"cluster/ops/certificates.py"},
    "numba": {"mint/kernels"},
    "threadpoolctl": {"mint/kernels/blas.py"},
    "sqlalchemy": {"cluster/service/data", "cluster/service/queue"},
    "alembic": {"cluster/service/data/database.py", "cluster/service/data/migrations"},
    "psycopg": set(),  # SQLAlchemy imports it
    "typer": {"mint/cli", "cluster/ops/commands.py", "cluster/service/commands", "cluster/service/operations"},
    "fastapi": {"cluster/service/http"},
    "starlette": {"cluster/service/http"},
    "uvicorn": {"cluster/service/http/server.py", "cluster/service/http/head_deadline.py"},
    "pydantic": {"cluster/service/http/schema", "cluster/service/work/runner.py"},
    "prometheus_client": {"cluster/service/http/metrics.py"},
    "rich": {"mint/cli/terminal/bars.py"},
    "transformers": {"mint/model/gguf/vocabulary.py"},
    "gguf": {"mint/model/gguf", "mint/model/storages/reference.py"},
    "lm_eval": {"mint/quality/tasks.py"},
    "datasets": {"mint/quality/tasks.py"},
    "matplotlib": {"mint/render/chart.py"},
    "huggingface_hub": {
        "mint/model/hub_cache.py",
        "mint/model/hub_download.py",
        "mint/model/remote/ranges.py",
        "mint/exports/upload.py",
    },
    "httpx": {"mint/client/http.py", "cluster/service/work/notifier.py"},
    "httpx2": {"mint/model/hub_download.py", "mint/model/remote/ranges.py", "mint/exports/upload.py"},
    "httpx_sse": {"mint/client/client.py"},
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_are_imported_only_by_their_owners(package: str) -> None:
    for path in [*(ROOT / "mint").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]:
        if any(name.split(".")[0] == package for name in _imports(path)):
            relative = path.relative_to(ROOT).as_posix()
            assert any(relative.startswith(owner) for owner in OWNERS[package]), f"{relative} imports {package}"


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = ("mlx", "mlx_lm", "numba", "ray", "numpy", "huggingface_hub", "httpx", "httpx2")
    code = f"import sys, mint.cli.main; print([p for p in {heavy} if p in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_allocating_needs_neither_mlx_lm_nor_numba_nor_ray() -> None:
    code = (
        "import sys, mint.plan.allocate, mint.plan.plan, mint.analysis.analysis, mint.render.summary;"
        "print([p for p in ('mlx_lm', 'numba', 'ray', 'transformers') if p in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_measuring_packing_and_cards_import_neither_scipy_s_products_nor_the_hub(tmp_path: Path) -> None:
    """Numba would import the former, for products that no kernel makes."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    code = f"""
import sys
from pathlib import Path
from mint.exports.card import _metadata
from mint.exports.source_card import read_source_card
from mint.forecast import forecast
from mint.kernels.warmup import MEASURE, WRITE, KernelSet, compile_all
compile_all(KernelSet(MEASURE, "nearest", "uint16"))
compile_all(KernelSet(WRITE, "nearest", "uint16"))
print(_metadata(read_source_card(Path({str(tmp_path)!r})), "text-generation").split())
print([name for name in ("scipy.linalg", "huggingface_hub", "transformers") if name in sys.modules])
import scipy.linalg  # still works
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    metadata, modules = result.stdout.splitlines()
    assert "'mit'" in metadata
    assert modules == "[]"


def test_importing_hashes_nothing_and_reads_no_file(tmp_path: Path) -> None:
    """The compiled kernels are exempt: numba's decorator looks for their cache."""
    code = """
import hashlib, importlib, pkgutil, sys

events, sha256 = [], hashlib.sha256

def noted(*arguments, **options):
    name = sys._getframe(1).f_globals["__name__"]
    if name.startswith("mint") and name != "mint.kernels.code_cache":
        events.append(f"{name} hashes")
    return sha256(*arguments, **options)

def audit(event, arguments):
    path = arguments[0] if event == "open" and isinstance(arguments[0], str) else ""
    ours = path.startswith(tuple(sys.argv[1:])) and not path.endswith((".py", ".pyc", "entry_points.txt"))
    if ours and "/kernels/" not in path:
        events.append(f"{path} is read")

import mint
hashlib.sha256 = noted
sys.addaudithook(audit)
for module in pkgutil.walk_packages(mint.__path__, "mint."):
    if module.name != "mint.__main__":
        importlib.import_module(module.name)
print(events)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, f"{ROOT}/", f"{tmp_path}/"],
        capture_output=True, text=True, check=True, env={**os.environ, "MINT_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert result.stdout.strip() == "[]"
