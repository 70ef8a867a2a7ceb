"""Observes this machine and its models, for `mint cluster status` and `mint doctor`."""

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cluster.copies.inventory import model_roots
from cluster.settings import UNWANTED, Address, installed_version, token_path
from mint.core.cache import cache_folder
from mint.core.memory import memory_bytes
from mint.kernels.backend import backend
from mint.model.checkpoint.shards import PATTERN

DASHBOARD = Address("127.0.0.1", 8265)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
PACKAGES = ("mint-mlx", "mlx", "mlx-lm", "ray", "grpcio")
DASHBOARD_PACKAGE = "aiohttp_cors"  # comes with ray[default] alone


@dataclass(frozen=True, slots=True)
class Model:
    """The safetensors files of one model in one folder of a node."""

    name: str
    nbytes: int
    folder: str
    shards: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """Observations; no field is a judgement."""

    hostname: str
    system: str  # Darwin, Linux
    release: str  # of macOS, or of the kernel
    processor: str  # as the process sees it: x86_64 under Rosetta
    chip: str
    memory_bytes: int
    python: str
    packages: dict[str, str]  # installed versions
    has_gpu: bool
    open_files: int  # that a process may have
    resolves_to: str  # the address of the host name on this machine, empty when unknown
    temp_folder: str  # of Ray
    disk_free_bytes: dict[str, int]  # by folder that is written to
    shared_memory_bytes: int  # of Linux's /dev/shm, 0 elsewhere
    roots: tuple[str, ...]
    missing_roots: tuple[str, ...]
    token: str
    token_mode: int  # permission bits, -1 when there is no token
    variables: tuple[str, ...]  # set here, and they override ours or send local traffic to a proxy
    has_dashboard: bool  # ray[default] is installed
    dashboard_listens: bool
    sleeps_after_minutes: int  # of macOS, 0 for never, -1 for unknown


def observe() -> Machine:
    """Observe this machine; takes about a second, most of it for MLX."""
    roots, token = model_roots(), token_path()
    temp = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    return Machine(
        hostname=socket.gethostname(),
        system=platform.system(),
        release=platform.mac_ver()[0] or platform.release(),
        processor=platform.machine(),
        chip=_chip(),
        memory_bytes=memory_bytes(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := installed_version(name))},
        has_gpu=backend().kind != "cpu",
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        resolves_to=_resolved(socket.gethostname()),
        temp_folder=str(temp),
        disk_free_bytes={str(folder): _free(folder) for folder in (cache_folder(), temp)},
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if sys.platform == "linux" else 0,
        roots=tuple(map(str, roots)),
        missing_roots=tuple(str(root) for root in roots if not root.is_dir()),
        token=str(token),
        token_mode=token.stat().st_mode & 0o777 if token.is_file() else -1,
        variables=tuple(name for name in (*UNWANTED, *PROXIES) if os.environ.get(name) or os.environ.get(name.upper())),
        has_dashboard=find_spec(DASHBOARD_PACKAGE) is not None,
        dashboard_listens=DASHBOARD.trouble(1.0) is None,
        sleeps_after_minutes=_sleep_minutes() if sys.platform == "darwin" else -1,
    )


def models() -> Iterator[Model]:
    """The models under this machine's roots: folders of a root, the root itself, snapshots of a hub cache."""
    for root in model_roots():
        for folder in [root, *sorted(root.glob("*")), *sorted(root.glob("models--*/snapshots/*"))]:
            if files := sorted(folder.glob(PATTERN)):
                repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
                name = repository if folder.parent.name == "snapshots" else folder.name
                nbytes = sum(file.stat().st_size for file in files)
                yield Model(name, nbytes, str(folder), len(files), tuple(file.name for file in files))


def _chip() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _sleep_minutes() -> int:
    match = re.search(r"^\s*sleep\s+(\d+)", _output("pmset", "-g"), re.MULTILINE)
    return int(match[1]) if match else -1


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
