"""Vision and audio towers: mlx_lm's classes drop them, and the result is a text model.

A loader takes a model for a multimodal one by its config and its files. So what the output lacks must leave no trace.
"""

import re
from collections.abc import Iterable
from typing import Any

_TOWERS = {"vision": re.compile(r"vision|visual|image"), "audio": re.compile(r"audio|speech")}


def dropped_towers(dropped: Iterable[str], kept: Iterable[str]) -> tuple[str, ...]:
    """The towers whose tensors are all dropped, of tensors dropped and kept by name."""
    there = towers_in(kept)
    return tuple(tower for tower in towers_in(dropped) if tower not in there)


def towers_in(names: Iterable[str]) -> tuple[str, ...]:
    """The towers that tensors of these names belong to."""
    names = list(names)
    return tuple(tower for tower, pattern in _TOWERS.items() if any(map(pattern.search, names)))


def without_towers(config: dict[str, Any], kept: Iterable[str]) -> dict[str, Any]:
    """The config without the parts of towers that no kept tensor belongs to."""
    absent = [_TOWERS[tower] for tower in _TOWERS.keys() - set(towers_in(kept))]
    return {
        key: value
        for key, value in config.items()
        if not (isinstance(value, dict) and any(pattern.search(key) for pattern in absent))
    }
