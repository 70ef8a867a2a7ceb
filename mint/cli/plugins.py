"""Commands of packages that are installed beside mint, found through entry points."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from mint.core.errors import MintError

GROUP = "mint.commands"
_EXTRAS = {"serve": "service", "token": "service"}  # of commands that are not called as their extra


def more_commands(name: str) -> Callable[..., Any]:
    """The command line of an installed package; raises `MintError` when nothing installed offers one of this name."""
    offers = entry_points(group=GROUP, name=name)
    if not offers:
        extra = _EXTRAS.get(name, name)
        raise MintError(f"mint {name}: nothing installed has this command; needed: pip install 'mint-mlx[{extra}]'")
    commands: Callable[..., Any] = next(iter(offers)).load()
    return commands
