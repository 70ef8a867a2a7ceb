"""Files that let a machine start its node by itself: a property list for launchd, a unit for systemd.

On a Mac it is a LaunchDaemon with a user, since LaunchAgents and most terminals are kept from the local network, and
`caffeinate` keeps the Mac awake for as long as the node lives. Neither file holds a secret.
"""

import plistlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPEN_FILES = 65536
LAUNCHD, SYSTEMD = "launchd", "systemd"
_CAFFEINATE = ("/usr/bin/caffeinate", "-is")
_AGAIN_SECONDS = 10  # between a node's end and its next start
_END_SECONDS = 60  # for the node to end its children


@dataclass(frozen=True, slots=True)
class Service:
    """A command of mint that shall always run, as a user."""

    name: str  # mint-cluster-head
    command: Sequence[str]
    user: str
    home: str
    log: str
    variables: Mapping[str, str]


def launchd(service: Service) -> str:
    """The property list of a LaunchDaemon, for /Library/LaunchDaemons."""
    listing = {
        "Label": service.name,
        "ProgramArguments": [*_CAFFEINATE, *service.command],
        "UserName": service.user,
        "WorkingDirectory": service.home,
        "EnvironmentVariables": {"HOME": service.home, **service.variables},
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": _AGAIN_SECONDS,
        "ExitTimeOut": _END_SECONDS,
        "ProcessType": "Interactive",  # else macOS gives it less of the processor
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": service.log,
        "StandardErrorPath": service.log,
    }
    return plistlib.dumps(listing, sort_keys=False).decode()


def systemd(service: Service) -> str:
    """The unit of a system service, for /etc/systemd/system."""
    command = " ".join(shlex.quote(word.replace("%", "%%").replace("$", "$$")) for word in service.command)
    assignments = " ".join(f'"{name}={value.replace("%", "%%")}"' for name, value in service.variables.items())
    variables = f"Environment={assignments}\n" if assignments else ""
    return (
        f"[Unit]\nDescription=MINT cluster node ({service.name})\n"
        "Wants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nExecStart={command}\nUser={service.user}\nWorkingDirectory={service.home}\n{variables}"
        f"Restart=always\nRestartSec={_AGAIN_SECONDS}\nTimeoutStopSec={_END_SECONDS}\nLimitNOFILE={OPEN_FILES}\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


KINDS = {LAUNCHD: launchd, SYSTEMD: systemd}


def how_to_install(kind: str, name: str) -> str:
    """What to do with the file, for the user."""
    if kind == LAUNCHD:
        place = f"/Library/LaunchDaemons/{name}.plist"
        return (
            f"sudo install -m 644 -o root -g wheel FILE {place} && sudo launchctl bootstrap system {place}; "
            f"ended with: sudo launchctl bootout system/{name}"
        )
    return f"sudo install -m 644 FILE /etc/systemd/system/{name}.service && sudo systemctl enable --now {name}"
