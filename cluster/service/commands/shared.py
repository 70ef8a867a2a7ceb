"""Options and steps that the commands of the service share.

The web framework and the database are imported inside the commands.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import platformdirs

from mint.cli.options import option
from mint.core.errors import MintError
from mint.core.version import install_command

HELP: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
Data = Annotated[Path | None, option("DIR", "The folder of all data; default: in the user's data folder.")]
DatabaseUrl = Annotated[
    str,
    option("URL", "postgresql://USER:PASSWORD@HOST/NAME; several servers of one share DIR too. Default: SQLite in DIR.",
           "--database", envvar="MINT_DATABASE", show_envvar=True)
]  # fmt: skip


def data_folder(data: Path | None) -> Path:
    """The data folder of the service."""
    return (data or Path(platformdirs.user_data_dir("mint")) / "service").expanduser().resolve()


@contextmanager
def needing_extra() -> Iterator[None]:
    """Name the extra to install if the web framework or the database is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("mint", "cluster"):
            raise
        raise MintError(f"{error.name} is not installed; needed: {install_command('service')}") from error
