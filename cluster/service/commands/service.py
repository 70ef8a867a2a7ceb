"""The commands `mint service`, for the data of a service, and `mint service-file`, to start it at boot."""

import getpass
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.autostart import KINDS, LAUNCHD, SYSTEMD, BootService, install_hint
from cluster.service.commands.shared import HELP, Data, data_folder, needing_extra
from mint.cli.options import Json, argument, flag, option
from mint.cli.terminal.foreign import echo
from mint.cli.terminal.screen import Screen
from mint.core.errors import MintError
from mint.core.progress import Progress

app = typer.Typer(
    name="service", help="Back up, restore and check the data of the service.", no_args_is_help=True, **HELP
)
file_app = typer.Typer(name="service-file", **HELP)
_NAME = "mint-service"


@app.command()
def backup(
    folder: Annotated[Path, argument("FOLDER", "A new folder, or an earlier backup, that gets only new files.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Copy the database and all stored files to a folder, while the service runs.

    Example: mint service backup /backups/mint
    """
    with Screen(as_json) as screen, needing_extra():
        from cluster.service.operations.backup import backup as run

        copied = run(data_folder(data), folder, _showing(screen, "backup"))
    screen.answer({"backup": str(folder), **asdict(copied)})


@app.command()
def restore(folder: Annotated[Path, argument("FOLDER", "A backup.")], data: Data = None, as_json: Json = False) -> None:
    """Make the data folder of a service from a backup, and check every file. Start mint serve with it then.

    Example: mint service restore /backups/mint --data ~/mint-data
    """
    with Screen(as_json) as screen, needing_extra():
        from cluster.service.operations.backup import restore as run

        copied = run(folder, data_folder(data), _showing(screen, "restore"))
    screen.answer({"data": str(data_folder(data)), **asdict(copied)})


@app.command()
def check(
    folder: Annotated[Path | None, argument("[FOLDER]", "A backup; default: the data of the service.")] = None,
    reads_files: Annotated[bool, flag("Read every file and compare its SHA-256.", "--read")] = False,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Look for faults in the data of the service, while it runs, or in a backup. Exit code 1 if there are any."""
    place = folder or data_folder(data)
    with Screen(as_json) as screen, needing_extra():
        from cluster.service.operations.backup import check as run

        condition = run(place, reads_files=reads_files, on_file=_showing(screen, "check"))
    screen.answer({"folder": str(place), **asdict(condition), "passed": not condition.faults})
    for fault in condition.faults if not as_json else ():
        screen.note(fault)
    return int(bool(condition.faults))


@file_app.command()
def service_file(
    config: Annotated[Path, option("FILE", "The configuration of mint serve.", "--config")],
    kind: Annotated[str, option("launchd|systemd", "Default: the kind of this system.")] = "",
) -> None:
    """Print a service file that starts `mint serve --config FILE` at boot, for launchd or systemd.

    Example: mint service-file --config ~/mint-serve.toml > mint-service.service
    """
    kind = kind or (LAUNCHD if sys.platform == "darwin" else SYSTEMD)
    if kind not in KINDS:
        raise typer.BadParameter(f"found {kind!r}, needed {' or '.join(KINDS)}", param_hint="--kind")
    if not config.is_file():
        raise MintError(f"--config {config}: no such file; needed: TOML, such as one with the line: port = 8420")
    command = [str(Path(sys.executable).with_name("mint")), "serve", "--config", str(config.absolute())]
    variables = {name: os.environ[name] for name in ("MINT_CACHE", "MINT_CONFIG") if name in os.environ}
    service = BootService(_NAME, command, getpass.getuser(), str(Path.home()), variables)
    echo(*KINDS[kind](service).splitlines())
    echo(*install_hint(kind, _NAME).splitlines(), error=True)


def _showing(screen: Screen, stage: str) -> Callable[[int, int, str], None]:
    return lambda done, total, name: screen.on_progress(Progress(stage, done, total, name))
