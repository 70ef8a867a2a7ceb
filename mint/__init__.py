"""MINT: give it a language model and a memory budget, get the best MLX model that fits.

The verbs of the pipeline as functions, imported when first used:

    from mint import open_source, analyze, allocate, assemble, verify, evaluate, quantize
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mint.errors import MintError

if TYPE_CHECKING:
    from mint.allocate import allocate
    from mint.analysis import read_analysis
    from mint.analyze import analyze
    from mint.assemble import assemble
    from mint.budget import parse_budget, parse_size
    from mint.client import Client
    from mint.curve import curve
    from mint.diff import diff
    from mint.evaluate import evaluate
    from mint.explain import explain
    from mint.objectives import objective
    from mint.plan import read_plan, write_plan
    from mint.problem import Problem
    from mint.quantize import quantize
    from mint.reuse import Reuse
    from mint.rules import Rules
    from mint.source import open_source
    from mint.verify import verify

__version__ = "0.1.0"
__all__ = [
    "Client",
    "MintError",
    "Problem",
    "Reuse",
    "Rules",
    "allocate",
    "analyze",
    "assemble",
    "curve",
    "diff",
    "evaluate",
    "explain",
    "objective",
    "open_source",
    "parse_budget",
    "parse_size",
    "quantize",
    "read_analysis",
    "read_plan",
    "verify",
    "write_plan",
]
_HOME = {
    "Client": "client",
    "open_source": "source",
    "read_analysis": "analysis",
    "parse_budget": "budget",
    "parse_size": "budget",
    "objective": "objectives",
    "Problem": "problem",
    "Reuse": "reuse",
    "Rules": "rules",
    "read_plan": "plan",
    "write_plan": "plan",
}


class _Package(ModuleType):
    """A package in which a verb's name means the function, also after the module of that name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mint.{_HOME.get(name, name)}"), name)
