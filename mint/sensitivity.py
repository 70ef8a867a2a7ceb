"""How much the model's output moves per unit of squared relative error of a unit: the prior table (alpha).

KL(original || stored) of the whole model is close to the sum over units of alpha * NRMSE^2 while errors are small
(the linearity theorem of HIGGS, arXiv 2411.17525). The values are data. Source: medians over layers of
alpha = KL / NRMSE^2, each unit of SmolLM2-135M-Instruct (30 layers, tied embedding, off its grid) stored alone at
3 bits, group 64, on 4 x 64 uniformly random tokens. Roles that this model lacks borrow the value of the role that
does the same work, and say so. One model is thin evidence: a probe of the model at hand is always better.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from mint.units import Unit

MEASURED_LAYERS = 30  # a layer's share shrinks with their number
ALPHA = {
    "head": 12.4,
    "embedding": 6.6,
    "q": 0.08,
    "k": 0.06,
    "v": 0.37,
    "o": 0.12,
    "gate": 0.32,
    "up": 0.43,
    "down": 0.24,
    # not measured; borrowed
    "qkv": 0.51,  # q + k + v
    "kv": 0.43,  # k + v
    "gate_up": 0.75,  # gate + up
    "expert_gate": 0.32,  # gate
    "expert_up": 0.43,  # up
    "expert_down": 0.24,  # down
    "mixer_in": 0.51,  # qkv
    "mixer_out": 0.12,  # o
    "position": 6.6,  # embedding
    "layer_embedding": 0.43,  # up
    "router": 2.6,  # 8 x gate: the published prior of routers over an ordinary tensor
    "index": 0.08,  # q
}
# the first layer sticks out: measured for down (4.4) and up (3.0); 3 is the published prior of a first layer
FIRST_LAYER = {"down": 18.0, "up": 7.0, "expert_down": 18.0, "expert_up": 7.0, "gate_up": 7.0}
FIRST_LAYER_OTHERWISE = 3.0
LAST_LAYER = 2.0  # the published prior of a last layer


def prior_alphas(units: Iterable[Unit]) -> dict[str, float]:
    """Alpha by path of every unit that may be quantized, from role and depth; a tied embedding pays as the head too."""
    units = tuple(units)
    layers = 1 + max((unit.layer for unit in units), default=0)
    tied = not any(unit.role == "head" for unit in units)
    return {unit.path: _prior(unit, layers, tied) for unit in units if not unit.keep_reason}


@dataclass(frozen=True, slots=True)
class Alpha:
    """A sensitivity, and where it comes from."""

    value: float
    origin: str


PRIOR, PROBED, SCALED = "prior", "probed", "prior scaled by probes"


def alphas_from(priors: Mapping[str, float], units: Iterable[Unit], probed: Mapping[str, float]) -> dict[str, Alpha]:
    """The alphas that were probed, and for all other units their priors.

    A prior is scaled by what the probes of its role say of priors (geometric mean), else by what all of them say.
    """
    by_role: dict[str, list[float]] = defaultdict(list)
    roles = {unit.path: unit.role for unit in units}
    for path, alpha in probed.items():
        if alpha > 0 and priors.get(path, 0.0) > 0:
            by_role[roles[path]].append(log(alpha / priors[path]))
    overall = [ratio for ratios in by_role.values() for ratio in ratios]
    found = {}
    for path, prior in priors.items():
        ratios = by_role.get(roles[path]) or overall
        if path in probed:
            found[path] = Alpha(probed[path], PROBED)
        elif ratios:
            found[path] = Alpha(prior * exp(fmean(ratios)), SCALED)
        else:
            found[path] = Alpha(prior, PRIOR)
    return found


def _prior(unit: Unit, layers: int, tied: bool) -> float:
    alpha = ALPHA[unit.role]
    if unit.role == "embedding" and tied:
        return alpha + ALPHA["head"]
    if unit.layer < 0:
        return alpha
    alpha *= MEASURED_LAYERS / layers
    if unit.layer == 0:
        alpha *= FIRST_LAYER.get(unit.role, FIRST_LAYER_OTHERWISE)
    elif unit.layer == layers - 1:
        alpha *= LAST_LAYER
    return alpha
