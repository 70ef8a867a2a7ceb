"""Everything known to go wrong on a machine of a cluster: one rule each, with its cure.

A rule looks at what was observed and says what it found; it is pure, so every machine can be judged on any other.
Those about macOS come from documentation and trackers; the report is made to be sent, and holds no secret.
"""

from collections.abc import Callable
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
    """What a rule says; `cure` is empty when all is good."""

    check: str
    verdict: str
    found: str
    cure: str = ""


Rule = Callable[[Machine], Finding]
RULES: list[Rule] = []


def examine(machine: Machine) -> list[Finding]:
    """What all rules say of a machine."""
    return [rule(machine) for rule in RULES]


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing is bad."""
    return all(finding.verdict != BAD for finding in findings)


def _rule(rule: Rule) -> Rule:
    RULES.append(rule)
    return rule


def _judge(check: str, well: bool, found: str, cure: str, *, otherwise: str = BAD) -> Finding:
    return Finding(check, GOOD, found) if well else Finding(check, otherwise, found, cure)


@_rule
def _installed(machine: Machine) -> Finding:
    missing = [name for name in ("mint-mlx", "mlx", "mlx-lm", "ray", "grpcio") if name not in machine.packages]
    found = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return _judge("packages", not missing, found, f"{', '.join(missing)} missing: pip install 'mint-mlx[cluster]'")


@_rule
def _native(machine: Machine) -> Finding:
    well = machine.system != "Darwin" or machine.processor == "arm64"
    found = f"{machine.system} {machine.release} {machine.processor}, Python {machine.python}"
    return _judge("processor", well, found, "this Python runs under Rosetta, without MLX: install one for arm64")


@_rule
def _gpu(machine: Machine) -> Finding:
    found = f"{machine.chip}, MLX works on the {'GPU' if machine.has_gpu else 'CPU'}"
    return _judge(
        "GPU", machine.has_gpu or machine.system != "Darwin", found, "MLX sees no Metal device; it needs Apple silicon"
    )


@_rule
def _macos_ray(machine: Machine) -> Finding:
    parts = machine.packages.get("ray", "0").split(".")
    major = machine.release.split(".")[0]
    hit = machine.system == "Darwin" and major.isdigit() and int(major) >= 26 and _at_least(parts, (2, 49))
    cure = (
        "`ray start --head` was reported broken on macOS 26 since Ray 2.49 (ray-project/ray#58211); if mint cluster up "
        "fails here, let a machine with an older macOS or Linux be the head, and please report it"
    )
    return _judge("Ray on macOS 26", not hit, f"Ray {machine.packages.get('ray', 'none')}", cure, otherwise=DOUBTFUL)


@_rule
def _minimal(machine: Machine) -> Finding:
    return _judge(
        "minimal Ray",
        not machine.has_dashboard,
        "ray[default]" if machine.has_dashboard else "no dashboard, no jobs API",
        "pip uninstall aiohttp-cors: with it Ray starts services that nobody needs here",
        otherwise=DOUBTFUL,
    )


@_rule
def _no_dashboard(machine: Machine) -> Finding:
    return _judge(
        "port 8265",
        not machine.dashboard_listens,
        "somebody listens" if machine.dashboard_listens else "nobody listens",
        "a Ray dashboard runs programs for whoever reaches it: end the Ray that was started apart from mint",
    )


@_rule
def _token(machine: Machine) -> Finding:
    if machine.token_mode < 0:
        return Finding(
            "token", DOUBTFUL, f"none at {machine.token}", "mint cluster up makes one; elsewhere copy the head's there"
        )
    well = machine.token_mode & 0o077 == 0
    return _judge("token", well, f"{machine.token}, mode {machine.token_mode:03o}", f"chmod 600 {machine.token}")


@_rule
def _variables(machine: Machine) -> Finding:
    return _judge(
        "environment",
        not machine.variables,
        ", ".join(machine.variables) or "nothing in the way",
        "unset them: mint sets Ray's variables itself, and a proxy is no way to a neighbour",
        otherwise=DOUBTFUL,
    )


@_rule
def _open_files(machine: Machine) -> Finding:
    return _judge(
        "open files",
        machine.open_files < 0 or machine.open_files >= OPEN_FILES,
        f"{machine.open_files} may be open",
        f"ulimit -n {OPEN_FILES}, or a service: mint cluster service-file sets it",
        otherwise=DOUBTFUL,
    )


@_rule
def _socket_path(machine: Machine) -> Finding:
    length = len(machine.temp_folder.encode()) + len(_SOCKET_NAME) + 1
    return _judge(
        "socket paths", length <= SOCKET_PATH, f"{length} of {SOCKET_PATH} bytes", "set RAY_TMPDIR to a shorter path"
    )


@_rule
def _name(machine: Machine) -> Finding:
    found = f"{machine.hostname} is {machine.resolves_to or 'unknown'}"
    cure = "use addresses, not names: this machine's own name leads the others nowhere"
    return _judge("host name", not resolves_to_loopback(machine), found, cure, otherwise=DOUBTFUL)


@_rule
def _shared_memory(machine: Machine) -> Finding:
    well = machine.system != "Linux" or machine.shared_memory_bytes >= STORE_BYTES
    cure = f"/dev/shm needs {STORE_BYTES} bytes; in a container: --shm-size=1g"
    return _judge("shared memory", well, f"{machine.shared_memory_bytes} bytes", cure, otherwise=DOUBTFUL)


@_rule
def _disk(machine: Machine) -> Finding:
    short = [folder for folder, nbytes in machine.disk_free_bytes.items() if nbytes < FREE_BYTES]
    found = ", ".join(f"{nbytes / 1e9:.1f} GB free for {folder}" for folder, nbytes in machine.disk_free_bytes.items())
    return _judge("disk", not short, found, f"make room for {', '.join(short)}; MINT_CACHE and RAY_TMPDIR move them")


@_rule
def _roots(machine: Machine) -> Finding:
    found = ", ".join(machine.roots) or "none: models are found only where the head has them"
    return _judge(
        "model roots", not machine.missing_roots, found, f"no such folder: {', '.join(machine.missing_roots)}"
    )


@_rule
def _sleep(machine: Machine) -> Finding:
    well = machine.system != "Darwin" or machine.sleeps_after_minutes == 0
    found = {0: "never sleeps", -1: "not known" if machine.system == "Darwin" else "no Mac"}.get(
        machine.sleeps_after_minutes, f"sleeps after {machine.sleeps_after_minutes} minutes"
    )
    cure = "sudo pmset -a sleep 0, or a service: mint cluster service-file keeps the Mac awake with caffeinate"
    return _judge("sleep", well, found, cure, otherwise=DOUBTFUL)


@_rule
def _local_network(machine: Machine) -> Finding:
    major = machine.release.split(".")[0]
    asks = machine.system == "Darwin" and major.isdigit() and int(major) >= 15
    cure = (
        "macOS 15 and later ask before a program may reach the local network, and refuse in silence what nobody "
        "allowed: "
        "System Settings, Privacy & Security, Local Network; a LaunchDaemon (mint cluster service-file) is not asked"
    )
    return _judge("local network", not asks, f"{machine.system} {machine.release}", cure, otherwise=DOUBTFUL)


def _at_least(parts: list[str], needed: tuple[int, int]) -> bool:
    return tuple(int(part) for part in parts[:2] if part.isdigit()) >= needed
