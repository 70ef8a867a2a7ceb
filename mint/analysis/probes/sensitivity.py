"""How much the model's output moves per unit of squared relative error of a unit: the prior table (alpha).

KL(original || stored) of the whole model is close to the sum over units of alpha * NRMSE^2 while errors are small
(the linearity theorem of HIGGS, arXiv 2411.17525). The values are data. Source: `mint probe` on 4 x 64 tokens that the
model itself wrote, SmolLM2-135M-Instruct (30 layers, off its 4-bit grid by dithering, tied embedding; what the
head has of the tied alpha: the same model with an untied head). Roles that this model lacks borrow from the role that
does the same work, and say so. One small model is thin evidence: a probe of the model at hand is always better.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from mint.formats.units import Unit

MEASURED_LAYERS = 30  # a layer's share shrinks with their number


@dataclass(frozen=True, slots=True)
class Profile:
    """Alpha of a role over depth: the geometric mean of the inner layers, and factors to it."""

    alpha: float
    first: float = 1.0  # of the first layer
    quarters: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # of the inner layers, by depth
    last: float = 1.0

    def at(self, layer: int, layers: int) -> float:
        """Alpha in a layer of a model with so many; -1 is outside of the layers."""
        if layer < 0:
            return self.alpha
        share = self.alpha * MEASURED_LAYERS / layers
        if layer == 0:
            return share * self.first
        if layer == layers - 1:
            return share * self.last
        return share * self.quarters[4 * (layer - 1) // (layers - 2)]


_Q = Profile(0.061, 0.10, (0.84, 1.76, 1.43, 0.48), 0.16)
_K = Profile(0.054, 0.14, (1.13, 1.24, 1.10, 0.65), 0.24)
_V = Profile(0.27, 0.51, (1.35, 1.49, 0.93, 0.54), 0.40)
_O = Profile(0.081, 3.3, (1.44, 1.36, 0.96, 0.53), 0.69)
_GATE = Profile(0.123, 2.3, (1.31, 1.13, 0.85, 0.80), 3.5)
_UP = Profile(0.17, 3.7, (0.99, 1.13, 1.03, 0.86), 12.0)
_DOWN = Profile(0.20, 5.8, (1.14, 1.55, 0.63, 0.89), 11.0)
PROFILES = {
    "head": Profile(7.0),
    "embedding": Profile(3.7),
    "q": _Q,
    "k": _K,
    "v": _V,
    "o": _O,
    "gate": _GATE,
    "up": _UP,
    "down": _DOWN,
    # not measured; borrowed
    "qkv": Profile(0.385, 0.4, _V.quarters, 0.35),  # q + k + v
    "kv": Profile(0.324, 0.45, _V.quarters, 0.37),  # k + v
    "gate_up": Profile(0.293, 3.1, _UP.quarters, 8.0),  # gate + up
    "expert_gate": _GATE,
    "expert_up": _UP,
    "expert_down": _DOWN,
    "mixer_in": Profile(0.385, 0.4, _V.quarters, 0.35),  # qkv
    "mixer_out": _O,
    "position": Profile(3.7),  # embedding
    "layer_embedding": _UP,
    "router": Profile(0.98, 2.3, _GATE.quarters, 3.5),  # 8 x gate: the published prior of routers over a usual tensor
    "index": _Q,
}


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


def alphas_from(
    priors: Mapping[str, float], units: Iterable[Unit], probed: Mapping[str, float], origin: str = PROBED
) -> dict[str, Alpha]:
    """The alphas that were probed, as `origin` says, and for all other units their priors.

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
            found[path] = Alpha(probed[path], origin)
        elif ratios:
            found[path] = Alpha(prior * exp(fmean(ratios)), SCALED)
        else:
            found[path] = Alpha(prior, PRIOR)
    return found


def _prior(unit: Unit, layers: int, tied: bool) -> float:
    alpha = PROFILES[unit.role].at(unit.layer, layers)
    return alpha + PROFILES["head"].alpha if unit.role == "embedding" and tied else alpha
