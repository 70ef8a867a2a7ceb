"""MINT: give it a language model and a memory budget, get the best MLX model that fits.

The verbs of the pipeline as functions, imported when first used:

    from mint import open_source, analyze, allocate, assemble, verify, evaluate, quantize
"""

import importlib
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError
from mint.core.version import __version__

if TYPE_CHECKING:
    from mint.analysis.analysis import read_analysis
    from mint.analysis.analyze import analyze
    from mint.assembly.assemble import assemble
    from mint.assembly.reuse import Reuse
    from mint.assembly.verify import verify
    from mint.client.client import Client
    from mint.core.sizes import parse_budget, parse_size
    from mint.model.source import open_source
    from mint.pipeline import quantize
    from mint.plan.allocate import allocate
    from mint.plan.curve import curve
    from mint.plan.explain import diff, explain
    from mint.plan.objectives import objective
    from mint.plan.plan import read_plan, write_plan
    from mint.plan.problem import Problem
    from mint.plan.rules import Rules
    from mint.quality.evaluate import evaluate

__all__ = [
    "Client",
    "MintError",
    "Problem",
    "Reuse",
    "Rules",
    "__version__",
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
    "Client": "mint.client.client",
    "MintError": "mint.core.errors",
    "Problem": "mint.plan.problem",
    "Reuse": "mint.assembly.reuse",
    "Rules": "mint.plan.rules",
    "allocate": "mint.plan.allocate",
    "analyze": "mint.analysis.analyze",
    "assemble": "mint.assembly.assemble",
    "curve": "mint.plan.curve",
    "diff": "mint.plan.explain",
    "evaluate": "mint.quality.evaluate",
    "explain": "mint.plan.explain",
    "objective": "mint.plan.objectives",
    "open_source": "mint.model.source",
    "parse_budget": "mint.core.sizes",
    "parse_size": "mint.core.sizes",
    "quantize": "mint.pipeline",
    "read_analysis": "mint.analysis.analysis",
    "read_plan": "mint.plan.plan",
    "verify": "mint.assembly.verify",
    "write_plan": "mint.plan.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mint' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
