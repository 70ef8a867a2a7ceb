"""Where the work of a command is done: in this process, or wherever an installed package offers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mint.errors import MintError
from mint.execute import Executor, in_process

GROUP = "mint.executors"
COMMANDS = "mint.commands"
INSTALL = "needed: pip install 'mint-mlx[cluster]'"


@contextmanager
def executing(address: str, model: Path, dtype: str = "") -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from and the executor for it: this process without an `address`.

    Raises `MintError` when there is an address and nothing installed that can work there.
    """
    if not address:
        yield model, in_process
        return
    offers = entry_points(group=GROUP)
    if not offers:
        raise MintError(f"--cluster {address}: nothing is installed that works elsewhere; {INSTALL}")
    with next(iter(offers)).load()(address, model, dtype) as place:
        yield place


def more_commands(name: str) -> Callable[..., Any]:
    """The command line of an installed package; raises `MintError` when nothing installed offers one of this name."""
    offers = entry_points(group=COMMANDS, name=name)
    if not offers:
        raise MintError(f"mint {name}: nothing installed has this command; {INSTALL}")
    commands: Callable[..., Any] = next(iter(offers)).load()
    return commands
