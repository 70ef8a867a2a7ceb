"""Imports point one way: verbs -> records -> kernels -> formats and errors; `cluster` -> `mint`; never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# each module may import from the levels below its own; those of one level know nothing of each other
LEVELS = [
    set(line.split())
    for line in """
        mint
        errors cache
        connection
        formats log roles extras budget journal knapsack_relaxation context progress process divergence features
        download
        blas kernels shards units layout knapsack_bundles devices compat speed estimates probed replay
        client hub config
        fetch
        locate
        knapsack_merge trace tree device prediction sensitivity manifest weights stored reference evaluation
        source knapsack_search analysis objectives logits
        knapsack execute mixed rules trace_context agreement sequences walk
        plan base compare stock norms places
        jobs prober written problem possible explain diff refer
        probe allocate curve fit reuse evaluate_here compensate
        analyze assemble verify draw evaluate_apart
        quantize evaluate
        records quality_records
        show options
        commands plan_commands quality_commands service_commands
        cli
    """.strip().splitlines()
]
OWNERS = {
    "mlx_lm": {"mint/tree.py"},
    "ray": {"cluster/actor.py", "cluster/carrier.py", "cluster/knock.py"},
    "grpc": {"cluster/knock.py"},
    "cryptography": {"cluster/certificates.py"},
    "numba": {"mint/kernels"},
    "sqlalchemy": {
        f"cluster/service/{name}.py"
        for name in (
            "database",
            "tables",
            "jobs",
            "watching",
            "fairness",
            "quotas",
            "ledger",
            "tokens",
            "history",
            "hosts",
            "migrations/env",
        )
    }
    | {"cluster/service/migrations/versions"},
    "alembic": {"cluster/service/database.py", "cluster/service/migrations"},
    "psycopg": set(),  # SQLAlchemy imports it
    "typer": {
        "mint/cli.py",
        "mint/options.py",
        "mint/commands.py",
        "mint/plan_commands.py",
        "mint/quality_commands.py",
        "mint/service_commands.py",
        "cluster/commands.py",
        "cluster/service/commands.py",
    },
    "fastapi": {"cluster/service/server.py", "cluster/service/access.py", "cluster/service/routes_"},
    "starlette": {"cluster/service/server.py", "cluster/service/downloads.py", "cluster/service/routes_"},
    "uvicorn": {"cluster/service/server.py", "cluster/service/connections.py"},
    "pydantic": {"cluster/service/messages.py"},
    "prometheus_client": {"cluster/service/metrics.py"},
    "rich": {"mint/show.py", "mint/cli.py"},
    "transformers": set(),
    "matplotlib": {"mint/draw.py"},
    "huggingface_hub": {"mint/hub.py", "mint/fetch.py"},
    "httpx": {"mint/connection.py"},
    "httpx2": {"mint/fetch.py"},
    "httpx_sse": {"mint/client.py"},
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "mint")
    return found


def _level(module: str) -> int:
    levels = [index for index, names in enumerate(LEVELS) if module in names]
    assert levels, f"mint/{module}.py has no level yet: give it one in LEVELS"
    return levels[0]


def _module_files() -> list[Path]:
    return sorted((ROOT / "mint").glob("*.py"))


@pytest.mark.parametrize("path", _module_files(), ids=lambda path: path.stem)
def test_every_module_imports_only_from_below(path: Path) -> None:
    if path.stem == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "mint" and len(parts) > 1 and (ROOT / "mint" / f"{parts[1]}.py").exists():
            assert _level(parts[1]) < _level(path.stem), f"{path.name} imports {parts[1]}, which is not below it"


def test_mint_knows_nothing_of_the_cluster() -> None:
    for path in (ROOT / "mint").rglob("*.py"):
        assert not any(name.split(".")[0] == "cluster" for name in _imports(path)), path


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_are_imported_only_by_their_owners(package: str) -> None:
    for path in [*(ROOT / "mint").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]:
        if any(name.split(".")[0] == package for name in _imports(path)):
            relative = path.relative_to(ROOT).as_posix()
            assert any(relative.startswith(owner) for owner in OWNERS[package]), f"{relative} imports {package}"


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = ("mlx", "mlx_lm", "numba", "ray", "numpy", "huggingface_hub", "httpx", "httpx2")
    code = f"import sys, mint.cli; print([p for p in {heavy} if p in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_allocating_needs_neither_mlx_lm_nor_numba_nor_ray() -> None:
    code = (
        "import sys, mint.allocate, mint.plan, mint.analysis;"
        "print([p for p in ('mlx_lm', 'numba', 'ray', 'transformers') if p in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {
        path.name: len(path.read_text().splitlines())
        for folder in ("mint", "cluster")
        for path in (ROOT / folder).rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    }
    assert not long
