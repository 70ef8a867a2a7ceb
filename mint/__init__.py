"""MINT: give it a language model and a memory budget, get the best MLX model that fits.

    from mint import quantize
    quantize("models/Qwen3-8B", "6GB", "Qwen3-8B-6GB")

The verbs are functions, imported when first used. `quantize` runs them all:

    open_source  a model folder or an id of the hub: its headers
    analyze      the error of every format in every unit
    probe        the sensitivity of the output to every unit (optional)
    allocate     a format for every unit, within a `Budget` and a `Recipe`; `curve` for all budgets, `explain`, `diff`
    assemble     the model folder of a plan
    verify       the check of a written folder
    evaluate     the distance of a model's predictions from the original's
    upload       a verified folder to the hub

Errors that a user can fix are `MintError`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError as MintError
from mint.core.version import __version__ as __version__

if TYPE_CHECKING:
    from mint.analysis.analysis import read_analysis as read_analysis
    from mint.analysis.analyze import analyze as analyze
    from mint.analysis.probes.probe import probe as probe
    from mint.analysis.probes.probe_file import probe_path as probe_path
    from mint.analysis.probes.probe_file import read_probes as read_probes
    from mint.analysis.probes.prober import Probing as Probing
    from mint.assembly.assemble import assemble as assemble
    from mint.assembly.reuse import Reuse as Reuse
    from mint.assembly.verify import verify as verify
    from mint.client.client import Client as Client
    from mint.core.sizes import parse_budget as parse_budget
    from mint.core.sizes import parse_size as parse_size
    from mint.exports.upload import upload as upload
    from mint.model.source import open_source as open_source
    from mint.pipeline import quantize as quantize
    from mint.plan.allocate import allocate as allocate
    from mint.plan.curve import curve as curve
    from mint.plan.explain import diff as diff
    from mint.plan.explain import explain as explain
    from mint.plan.objectives import objective as objective
    from mint.plan.plan import read_plan as read_plan
    from mint.plan.plan import write_plan as write_plan
    from mint.plan.problem import Problem as Problem
    from mint.plan.recipe import Budget as Budget
    from mint.plan.recipe import Recipe as Recipe
    from mint.plan.recipe import Room as Room
    from mint.plan.rules import Rules as Rules
    from mint.quality.evaluate import evaluate as evaluate
    from mint.targets.devices import device as device
    from mint.targets.devices import devices as devices

_HOMES = {
    "mint.analysis.analysis": "read_analysis",
    "mint.analysis.analyze": "analyze",
    "mint.analysis.probes.probe": "probe",
    "mint.analysis.probes.probe_file": "probe_path read_probes",
    "mint.analysis.probes.prober": "Probing",
    "mint.assembly.assemble": "assemble",
    "mint.assembly.reuse": "Reuse",
    "mint.assembly.verify": "verify",
    "mint.client.client": "Client",
    "mint.core.sizes": "parse_budget parse_size",
    "mint.exports.upload": "upload",
    "mint.model.source": "open_source",
    "mint.pipeline": "quantize",
    "mint.plan.allocate": "allocate",
    "mint.plan.curve": "curve",
    "mint.plan.explain": "diff explain",
    "mint.plan.objectives": "objective",
    "mint.plan.plan": "read_plan write_plan",
    "mint.plan.problem": "Problem",
    "mint.plan.recipe": "Budget Recipe Room",
    "mint.plan.rules": "Rules",
    "mint.quality.evaluate": "evaluate",
    "mint.targets.devices": "device devices",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = ["MintError", "__version__", *_HOME]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mint' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
