"""Checks a machine for the known problems of a cluster; each finding comes with its cure.

The checks are pure functions of an observation, so any machine can be checked on any other. Checks about macOS come
from documentation and issue trackers. The report is meant to be sent, so it contains no secret.
"""

from dataclasses import dataclass

from cluster.ops.autostart import OPEN_FILES
from cluster.ops.machine import Machine, resolves_to_loopback
from cluster.settings import STORE_BYTES

GOOD, DOUBTFUL, BAD = "good", "doubtful", "BAD"
SOCKET_PATH = 104  # bytes of a socket's path on macOS, with the 0 at its end; Linux has 108
_SOCKET_NAME = "/session_2026-01-01_00-00-00_000000_00000/sockets/plasma_store"
FREE_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; `cure` is empty if the verdict is good."""

    check: str
    verdict: str
    found: str
    cure: str = ""


def examine(machine: Machine) -> list[Finding]:
    """The findings of all checks on a machine."""
    return [*_software(machine), *_security(machine), *_resources(machine), *_availability(machine)]


def is_well(findings: list[Finding]) -> bool:
    """True if no finding is bad."""
    return all(finding.verdict != BAD for finding in findings)


def _judge(check: str, well: bool, found: str, cure: str, *, otherwise: str = BAD) -> Finding:
    return Finding(check, GOOD, found) if well else Finding(check, otherwise, found, cure)


def _software(machine: Machine) -> list[Finding]:
    is_mac = machine.system == "Darwin"
    missing = [name for name in ("mint-mlx", "mlx", "mlx-lm", "ray", "grpcio") if name not in machine.packages]
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    platform = f"{machine.system} {machine.release} {machine.processor}, Python {machine.python}"
    ray = machine.packages.get("ray", "none")
    ray_version = tuple(int(part) for part in ray.split(".")[:2] if part.isdigit())
    device = "GPU" if machine.has_gpu else "CPU"
    return [
        _judge("packages", not missing, versions, f"{', '.join(missing)} missing: pip install 'mint-mlx[cluster]'"),
        _judge(
            "processor",
            not is_mac or machine.processor == "arm64",
            platform,
            "this Python runs under Rosetta, without MLX: install one for arm64",
        ),
        _judge(
            "GPU",
            machine.has_gpu or not is_mac,
            f"{machine.chip}, MLX works on the {device}",
            "MLX sees no Metal device; it needs Apple silicon",
        ),
        _judge(
            "Ray on macOS 26",
            not (_macos_version(machine) >= 26 and ray_version >= (2, 49)),
            f"Ray {ray}",
            "`ray start --head` is reported broken on macOS 26 since Ray 2.49 (ray-project/ray#58211); if mint cluster "
            "up fails here, use a machine with an older macOS or Linux as the head, and please report it",
            otherwise=DOUBTFUL,
        ),
        _judge(
            "minimal Ray",
            not machine.has_dashboard,
            "ray[default]" if machine.has_dashboard else "no dashboard, no jobs API",
            "pip uninstall aiohttp-cors: with it Ray starts services that the cluster does not need",
            otherwise=DOUBTFUL,
        ),
    ]


def _security(machine: Machine) -> list[Finding]:
    has_token = machine.token_mode >= 0
    return [
        _judge(
            "port 8265",
            not machine.dashboard_listens,
            "in use" if machine.dashboard_listens else "not in use",
            "a Ray dashboard runs programs for everybody who can reach it: stop the Ray that mint did not start",
        ),
        _judge(
            "token",
            has_token and machine.token_mode & 0o077 == 0,
            f"{machine.token}, mode {machine.token_mode:03o}" if has_token else f"none at {machine.token}",
            f"chmod 600 {machine.token}"
            if has_token
            else "mint cluster up makes one; on other machines copy the head's token there",
            otherwise=BAD if has_token else DOUBTFUL,
        ),
        _judge(
            "environment",
            not machine.variables,
            ", ".join(machine.variables) or "no conflicting variables",
            "unset them: mint sets Ray's variables itself, and a proxy does not lead to other nodes",
            otherwise=DOUBTFUL,
        ),
    ]


def _resources(machine: Machine) -> list[Finding]:
    length = len(machine.temp_folder.encode()) + len(_SOCKET_NAME) + 1
    free = machine.disk_free_bytes
    full = [folder for folder, nbytes in free.items() if nbytes < FREE_BYTES]
    return [
        _judge(
            "open files",
            machine.open_files < 0 or machine.open_files >= OPEN_FILES,
            f"at most {machine.open_files} open files",
            f"ulimit -n {OPEN_FILES}, or a service: mint cluster service-file sets it",
            otherwise=DOUBTFUL,
        ),
        _judge(
            "socket paths",
            length <= SOCKET_PATH,
            f"{length} of {SOCKET_PATH} bytes",
            "set RAY_TMPDIR to a shorter path",
        ),
        _judge(
            "host name",
            not resolves_to_loopback(machine),
            f"{machine.hostname} is {machine.resolves_to or 'unknown'}",
            "use addresses, not names: other machines cannot resolve this machine's name",
            otherwise=DOUBTFUL,
        ),
        _judge(
            "shared memory",
            machine.system != "Linux" or machine.shared_memory_bytes >= STORE_BYTES,
            f"{machine.shared_memory_bytes} bytes",
            f"/dev/shm needs {STORE_BYTES} bytes; in a container: --shm-size=1g",
            otherwise=DOUBTFUL,
        ),
        _judge(
            "disk",
            not full,
            ", ".join(f"{nbytes / 1e9:.1f} GB free for {folder}" for folder, nbytes in free.items()),
            f"free space for {', '.join(full)}; MINT_CACHE and RAY_TMPDIR move them",
        ),
    ]


def _availability(machine: Machine) -> list[Finding]:
    minutes = machine.sleeps_after_minutes
    is_mac = machine.system == "Darwin"
    sleep = {0: "never sleeps", -1: "unknown" if is_mac else "no Mac"}.get(minutes, f"sleeps after {minutes} minutes")
    return [
        _judge(
            "model roots",
            not machine.missing_roots,
            ", ".join(machine.roots) or "none: a model must have the same path as on the head",
            f"no such folder: {', '.join(machine.missing_roots)}",
        ),
        _judge(
            "sleep",
            not is_mac or minutes == 0,
            sleep,
            "sudo pmset -a sleep 0, or a service: mint cluster service-file keeps the Mac awake with caffeinate",
            otherwise=DOUBTFUL,
        ),
        _judge(
            "local network",
            _macos_version(machine) < 15,
            f"{machine.system} {machine.release}",
            "macOS 15 and later ask before a program may reach the local network, and silently block it otherwise: "
            "System Settings, Privacy & Security, Local Network; a LaunchDaemon (mint cluster service-file) is exempt",
            otherwise=DOUBTFUL,
        ),
    ]


def _macos_version(machine: Machine) -> int:
    """The major version of macOS; 0 on other systems."""
    major = machine.release.split(".")[0]
    return int(major) if machine.system == "Darwin" and major.isdigit() else 0
