"""Checks a machine for the known problems of a cluster; each finding comes with its cure.

The checks are pure functions of an observation, so any machine can be checked on any other. Checks about macOS come
from documentation and issue trackers. The report is meant to be sent, so it contains no secret.
"""

from dataclasses import asdict
from typing import Any

from cluster.autostart import OPEN_FILES
from cluster.ops.machine import PACKAGES, Machine, observe
from cluster.settings import STORE_BYTES, checked_secrets, installed_version, parse_address
from cluster.transport.connect import needing_ray
from mint.client.http import is_loopback
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.core.version import install_command
from mint.run.checkup import BAD, DOUBTFUL, GOOD, Finding

SOCKET_PATH = 104  # bytes of a socket's path on macOS, with the 0 at its end; Linux has 108
_SOCKET_NAME = "/session_2026-01-01_00-00-00_000000_00000/sockets/plasma_store"
FREE_BYTES = 2 * 10**9

# by check, with the details of a problem in place of {}
CURES = {
    "packages": f"{{}} missing: {install_command('cluster')}",
    "processor": "this Python runs under Rosetta, without MLX: install one for arm64",
    "GPU": "MLX sees no Metal device; it needs Apple silicon",
    "Ray on macOS 26": "`ray start --head` is reported broken on macOS 26 since Ray 2.49 (ray-project/ray#58211); if "
    "mint cluster up fails here, use a machine with an older macOS or Linux as the head, and please report it",
    "minimal Ray": "pip uninstall aiohttp-cors: with it Ray starts services that the cluster does not need",
    "port 8265": "a Ray dashboard runs programs for everybody who can reach it: stop the Ray that mint did not start",
    "token": "chmod 600 {}",
    "environment": "unset them: mint sets Ray's variables itself, and a proxy does not lead to other nodes",
    "open files": f"ulimit -n {OPEN_FILES}, or a service: mint cluster service-file sets it",
    "socket paths": "set RAY_TMPDIR to a shorter path",
    "host name": "use addresses, not names: other machines cannot resolve this machine's name",
    "shared memory": f"/dev/shm needs {format_size(STORE_BYTES)}; in a container: --shm-size=1g",
    "disk": "free space for {}; MINT_CACHE and RAY_TMPDIR move them",
    "model roots": "no such folder: {}",
    "sleep": "sudo pmset -a sleep 0, or a service: mint cluster service-file keeps the Mac awake with caffeinate",
    "local network": "macOS 15 and later ask before a program may reach the local network, and silently block it "
    "otherwise: System Settings, Privacy & Security, Local Network; a LaunchDaemon (mint cluster service-file) is "
    "exempt",
}
FATAL = {"packages", "processor", "GPU", "port 8265", "token", "socket paths", "disk", "model roots"}  # else doubtful
Results = dict[str, tuple[bool, str] | tuple[bool, str, str]]  # by check: is it good, the observation, details


def diagnose(head: str) -> tuple[list[Finding], dict[str, Any]]:
    """The findings for `mint doctor`, and the observations; none without Ray, unless a cluster is to be checked."""
    if not head and not installed_version("ray"):
        return [], {}
    machine = observe()
    return [*examine(machine), *([_check_head(head)] if head else [])], asdict(machine)


def _check_head(head: str) -> Finding:
    address = parse_address(head)
    try:
        with needing_ray():
            from cluster.head.handshake import knock

            answer = knock(address, checked_secrets(address))
    except MintError as error:
        return Finding("cluster", BAD, str(address), str(error))
    return Finding("cluster", GOOD, f"{address}: {len(answer.living())} nodes, same versions, token accepted")


def examine(machine: Machine) -> list[Finding]:
    """The findings of all checks on a machine."""
    results = _software(machine) | _setup(machine) | _resources(machine)
    findings = {check: _finding(check, *results[check]) for check in CURES}
    if machine.token_mode < 0:
        cure = "mint cluster up makes one; on other machines copy the head's token there"
        findings["token"] = Finding("token", DOUBTFUL, f"none at {machine.token}", cure)
    return list(findings.values())


def _finding(check: str, well: bool, observation: str, details: str = "") -> Finding:
    if well:
        return Finding(check, GOOD, observation)
    return Finding(check, BAD if check in FATAL else DOUBTFUL, observation, CURES[check].format(details))


def _software(machine: Machine) -> Results:
    is_mac = machine.system == "Darwin"
    missing = ", ".join(name for name in PACKAGES if name not in machine.packages)
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    platform = f"{machine.system} {machine.release} {machine.processor}, Python {machine.python}"
    ray = machine.packages.get("ray", "none")
    ray_version = tuple(int(part) for part in ray.split(".")[:2] if part.isdecimal())
    device = "GPU" if machine.has_gpu else "CPU"
    kind = "ray[default]" if machine.has_dashboard else "no dashboard, no jobs API"
    return {
        "packages": (not missing, versions, missing),
        "processor": (not is_mac or machine.processor == "arm64", platform),
        "GPU": (machine.has_gpu or not is_mac, f"{machine.chip}, MLX works on the {device}"),
        "Ray on macOS 26": (_macos_version(machine) < 26 or ray_version < (2, 49), f"Ray {ray}"),
        "minimal Ray": (not machine.has_dashboard, kind),
        "port 8265": (not machine.dashboard_listens, "in use" if machine.dashboard_listens else "not in use"),
    }


def _setup(machine: Machine) -> Results:
    minutes = machine.sleeps_after_minutes
    is_mac = machine.system == "Darwin"
    sleep = {0: "never sleeps", -1: "unknown" if is_mac else "no Mac"}.get(minutes, f"sleeps after {minutes} minutes")
    roots = ", ".join(machine.roots) or "none: a model must have the same path as on the head"
    return {
        "token": (machine.token_mode & 0o077 == 0, f"{machine.token}, mode {machine.token_mode:03o}", machine.token),
        "environment": (not machine.variables, ", ".join(machine.variables) or "no conflicting variables"),
        "model roots": (not machine.missing_roots, roots, ", ".join(machine.missing_roots)),
        "sleep": (not is_mac or minutes == 0, sleep),
        "local network": (_macos_version(machine) < 15, f"{machine.system} {machine.release}"),
    }


def _resources(machine: Machine) -> Results:
    files, store = machine.open_files, machine.shared_memory_bytes
    length = len(machine.temp_folder.encode()) + len(_SOCKET_NAME) + 1
    free = machine.disk_free_bytes
    full = ", ".join(folder for folder, nbytes in free.items() if nbytes < FREE_BYTES)
    space = ", ".join(f"{nbytes / 1e9:.1f} GB free for {folder}" for folder, nbytes in free.items())
    name = machine.resolves_to
    return {
        "open files": (files < 0 or files >= OPEN_FILES, f"at most {files} open files"),
        "socket paths": (length <= SOCKET_PATH, f"{length} of {SOCKET_PATH} bytes"),
        "host name": (not is_loopback(name), f"{machine.hostname} is {name or 'unknown'}"),
        "shared memory": (machine.system != "Linux" or store >= STORE_BYTES, format_size(store)),
        "disk": (not full, space, full),
    }


def _macos_version(machine: Machine) -> int:
    """The major version of macOS; 0 on other systems."""
    major = machine.release.split(".")[0]
    return int(major) if machine.system == "Darwin" and major.isdecimal() else 0
