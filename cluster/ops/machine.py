"""What a machine is and holds, as it says of itself: for `mint cluster status` and `mint cluster doctor`."""

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from cluster.copies.inventory import model_roots
from cluster.settings import UNWANTED, token_place
from mint.client.http import is_loopback
from mint.core.cache import cache_folder
from mint.core.memory import memory_bytes
from mint.model.checkpoint.shards import PATTERN

DASHBOARD_PORT = 8265
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
PACKAGES = ("mint-mlx", "mlx", "mlx-lm", "ray", "grpcio")
DASHBOARD_PACKAGE = "aiohttp_cors"  # comes with ray[default] alone


@dataclass(frozen=True, slots=True)
class Model:
    """The safetensors files of one model in one folder of a node."""

    name: str
    folder: str
    shards: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What was observed; no field is a judgement."""

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
    resolves_to: str  # what the host name means to this machine, empty when nothing
    temp_folder: str  # of Ray
    disk_free_bytes: dict[str, int]  # by folder that is written to
    shared_memory_bytes: int  # of Linux's /dev/shm, 0 elsewhere
    roots: tuple[str, ...]
    missing_roots: tuple[str, ...]
    token: str
    token_mode: int  # permission bits, -1 when there is no token
    variables: tuple[str, ...]  # set, and better not: they win over ours, or send local traffic to a proxy
    has_dashboard: bool  # ray[default] is installed
    dashboard_listens: bool
    sleeps_after_minutes: int  # of macOS, 0 for never, -1 for unknown


def observe() -> Machine:
    """Look at this machine; takes about a second, most of it for MLX."""
    roots = model_roots()
    cache = cache_folder()
    temp = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    token = token_place()
    return Machine(
        hostname=socket.gethostname(),
        system=platform.system(),
        release=platform.mac_ver()[0] or platform.release(),
        processor=platform.machine(),
        chip=_chip(),
        memory_bytes=memory_bytes(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        has_gpu=_has_gpu(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        resolves_to=_resolved(socket.gethostname()),
        temp_folder=str(temp),
        disk_free_bytes={str(folder): _free(folder) for folder in (cache, temp)},
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if sys.platform == "linux" else 0,
        roots=tuple(map(str, roots)),
        missing_roots=tuple(str(root) for root in roots if not root.is_dir()),
        token=str(token),
        token_mode=token.stat().st_mode & 0o777 if token.is_file() else -1,
        variables=tuple(name for name in (*UNWANTED, *PROXIES) if os.environ.get(name) or os.environ.get(name.upper())),
        has_dashboard=find_spec(DASHBOARD_PACKAGE) is not None,
        dashboard_listens=_listens(DASHBOARD_PORT),
        sleeps_after_minutes=_sleep_minutes(_said("pmset", "-g") if sys.platform == "darwin" else ""),
    )


def models() -> Iterator[Model]:
    """The models under this machine's roots: folders of a root, the root itself, snapshots of a hub cache."""
    for root in model_roots():
        for folder in [root, *sorted(root.glob("*")), *sorted(root.glob("models--*/snapshots/*"))]:
            files = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
            if files:
                name = folder.name if folder.parent.name != "snapshots" else _hub_name(folder)
                nbytes = sum(file.stat().st_size for file in files)
                yield Model(name, str(folder), tuple(file.name for file in files), nbytes)


def _hub_name(snapshot: Path) -> str:
    return snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")


def _chip() -> str:
    if sys.platform == "darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _has_gpu() -> bool:
    from mint.kernels.backend import backend

    return backend().kind != "cpu"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _sleep_minutes(power: str) -> int:
    """The minutes after which macOS sleeps, from what `pmset -g` says."""
    for line in power.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "sleep" and words[1].isdigit():
            return int(words[1])
    return -1


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def resolves_to_loopback(machine: Machine) -> bool:
    """Whether the machine's own name leads to itself only."""
    return bool(machine.resolves_to) and is_loopback(machine.resolves_to)
