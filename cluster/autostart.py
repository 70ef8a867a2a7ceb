"""Service files that start a mint command at boot: a property list for launchd, a unit for systemd.

A Mac needs a LaunchDaemon with a user: macOS blocks LaunchAgents and most terminals from the local network.
`caffeinate` keeps the Mac awake while the command runs. Neither file contains a secret.
"""

import plistlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPEN_FILES = 65536
LAUNCHD, SYSTEMD = "launchd", "systemd"
_CAFFEINATE = ("/usr/bin/caffeinate", "-is")
_RESTART_SECONDS = 10  # between the end of the command and its next start
_STOP_SECONDS = 60  # for the command to end its children


@dataclass(frozen=True, slots=True)
class BootService:
    """A mint command that always runs, as a user with a home folder."""

    name: str  # mint-cluster-head
    command: Sequence[str]
    user: str
    home: str
    variables: Mapping[str, str]


def launchd(service: BootService) -> str:
    """The property list of a LaunchDaemon, for /Library/LaunchDaemons."""
    log = f"{service.home}/{service.name}.log"
    listing = {
        "Label": service.name,
        "ProgramArguments": [*_CAFFEINATE, *service.command],
        "UserName": service.user,
        "WorkingDirectory": service.home,
        "EnvironmentVariables": {"HOME": service.home, **service.variables},
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": _RESTART_SECONDS,
        "ExitTimeOut": _STOP_SECONDS,
        "ProcessType": "Interactive",  # otherwise macOS throttles its processor time
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    return plistlib.dumps(listing, sort_keys=False).decode()


def systemd(service: BootService) -> str:
    """The unit of a system service, for /etc/systemd/system."""
    command = " ".join(shlex.quote(word.replace("%", "%%").replace("$", "$$")) for word in service.command)
    assignments = " ".join(f'"{name}={value.replace("%", "%%")}"' for name, value in service.variables.items())
    variables = f"Environment={assignments}\n" if assignments else ""
    return (
        f"[Unit]\nDescription=MINT ({service.name})\n"
        "Wants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nExecStart={command}\nUser={service.user}\nWorkingDirectory={service.home}\n{variables}"
        f"Restart=always\nRestartSec={_RESTART_SECONDS}\nTimeoutStopSec={_STOP_SECONDS}\nLimitNOFILE={OPEN_FILES}\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


KINDS = {LAUNCHD: launchd, SYSTEMD: systemd}


def install_hint(kind: str, name: str) -> str:
    """The shell commands that install the file."""
    if kind == LAUNCHD:
        path = f"/Library/LaunchDaemons/{name}.plist"
        return (
            f"sudo install -m 644 -o root -g wheel FILE {path} && sudo launchctl bootstrap system {path}; "
            f"to stop it: sudo launchctl bootout system/{name}"
        )
    return f"sudo install -m 644 FILE /etc/systemd/system/{name}.service && sudo systemctl enable --now {name}"
