"""Loads the commands of packages that are installed beside mint, by their entry points."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from mint.core.errors import MintError

GROUP = "mint.commands"
_EXTRAS = {"serve": "service", "token": "service"}  # by command, if the names differ


def plugin_command(name: str) -> Callable[..., Any]:
    """The command of an installed package; `MintError` if no package provides it."""
    points = entry_points(group=GROUP, name=name)
    if not points:
        extra = _EXTRAS.get(name, name)
        raise MintError(f"mint {name}: no installed package has this command; needed: pip install 'mint-mlx[{extra}]'")
    command: Callable[..., Any] = next(iter(points)).load()
    return command
