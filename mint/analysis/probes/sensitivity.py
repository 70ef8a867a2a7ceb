"""The sensitivity of the model's output to the squared relative error of a unit (alpha): the prior table.

KL(original || stored) of the whole model is close to the sum over units of alpha * NRMSE^2 while errors are small
(the linearity theorem of HIGGS, arXiv 2411.17525). The values are data. Source: `mint probe` on 4 x 64 tokens that the
model itself wrote, SmolLM2-135M-Instruct (30 layers, off its 4-bit grid by dithering, tied embedding; the head's share
of the tied alpha from the same model with an untied head). Roles that this model lacks borrow from the role with the
same function, as a comment says. One small model is thin evidence: a probe of the model itself is always better.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import exp, fsum, log

from mint.formats.units import Unit
from mint.model.roles import TOWER

MEASURED_LAYERS = 30  # a layer's share shrinks with their number


@dataclass(frozen=True, slots=True)
class Profile:
    """Alpha of a role over depth: the geometric mean of the inner layers, and factors to it."""

    alpha: float
    first: float = 1.0  # of the first layer
    quarters: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # of the inner layers, by depth
    last: float = 1.0

    def at(self, layer: int, layers: int) -> float:
        """Alpha in one layer of `layers`; -1 is outside the layers."""
        if layer < 0:
            return self.alpha
        share = self.alpha * MEASURED_LAYERS / layers
        if layer == 0:
            return share * self.first
        if layer == layers - 1:
            return share * self.last
        return share * self.quarters[4 * (layer - 1) // (layers - 2)]


_MEASURED = {
    "head": Profile(7.0),
    "embedding": Profile(3.7),
    "q": Profile(0.061, 0.10, (0.84, 1.76, 1.43, 0.48), 0.16),
    "k": Profile(0.054, 0.14, (1.13, 1.24, 1.10, 0.65), 0.24),
    "v": Profile(0.27, 0.51, (1.35, 1.49, 0.93, 0.54), 0.40),
    "o": Profile(0.081, 3.3, (1.44, 1.36, 0.96, 0.53), 0.69),
    "gate": Profile(0.123, 2.3, (1.31, 1.13, 0.85, 0.80), 3.5),
    "up": Profile(0.17, 3.7, (0.99, 1.13, 1.03, 0.86), 12.0),
    "down": Profile(0.20, 5.8, (1.14, 1.55, 0.63, 0.89), 11.0),
}
_V, _GATE, _UP = (_MEASURED[role].quarters for role in ("v", "gate", "up"))
PROFILES = _MEASURED | {
    # not measured; borrowed
    "qkv": Profile(0.385, 0.4, _V, 0.35),  # q + k + v
    "kv": Profile(0.324, 0.45, _V, 0.37),  # k + v
    "gate_up": Profile(0.293, 3.1, _UP, 8.0),  # gate + up
    "expert_gate": _MEASURED["gate"],
    "expert_up": _MEASURED["up"],
    "expert_down": _MEASURED["down"],
    "mixer_in": Profile(0.385, 0.4, _V, 0.35),  # qkv
    "mixer_out": _MEASURED["o"],
    "position": Profile(3.7),  # embedding
    "input_embedding": Profile(3.7),  # embedding
    "layer_embedding": _MEASURED["up"],
    "ngram_embedding": _MEASURED["up"],
    "ngram_projection": Profile(3.7),  # embedding
    "layer_input": _MEASURED["up"],
    "residual": _MEASURED["down"],
    "expert_latent": _MEASURED["down"],
    "q_latent": _MEASURED["q"],
    "kv_latent": Profile(0.324, 0.45, _V, 0.37),  # kv
    "linear_block": _MEASURED["down"],
    "state_gate": Profile(0.385, 0.4, _V, 0.35),  # mixer_in
    "prediction": _MEASURED["up"],
    "router": Profile(0.98, 2.3, _GATE, 3.5),  # 8 x gate: the published prior of routers over a usual tensor
    "index": _MEASURED["q"],
    TOWER: Profile(0.2),  # down; no text reaches it
}


def prior_alphas(units: Iterable[Unit]) -> dict[str, float]:
    """Alpha by path of every unit that may be quantized, from role and depth; a tied embedding counts as a head too."""
    units = tuple(units)
    layers = 1 + max((unit.layer for unit in units), default=0)
    alphas = {unit.path: PROFILES[unit.role].at(unit.layer, layers) for unit in units if not unit.keep_reason}
    if not any(unit.role == "head" for unit in units):
        for unit in units:
            if unit.role == "embedding" and unit.path in alphas:
                alphas[unit.path] += PROFILES["head"].alpha
    return alphas


@dataclass(frozen=True, slots=True)
class Alpha:
    """A sensitivity and its origin."""

    value: float
    origin: str


PRIOR, PROBED, SCALED = "prior", "probed", "prior scaled by probes"


def alphas_from(
    priors: Mapping[str, float], units: Iterable[Unit], probed: Mapping[str, float], origin: str = PROBED
) -> dict[str, Alpha]:
    """The `probed` alphas, of this `origin`, and scaled priors for all other units.

    A probe of 0 says nothing: the tokens were too few to reach the unit, such as an expert or a sparse-attention index.
    The scale of a prior is the geometric mean of probe over prior: of its role if that has probes, else of all roles.
    """
    ratios: dict[str, list[float]] = defaultdict(list)  # logarithms, by role
    roles = {unit.path: unit.role for unit in units}
    for path, alpha in probed.items():
        if alpha > 0 and priors.get(path, 0.0) > 0:
            ratios[roles[path]].append(log(alpha / priors[path]))
    overall = list(chain.from_iterable(ratios.values()))
    alphas = {}
    for path, prior in priors.items():
        of_role = ratios.get(roles[path]) or overall
        if probed.get(path, 0.0) > 0:
            alphas[path] = Alpha(probed[path], origin)
        else:
            alphas[path] = Alpha(prior * exp(fsum(of_role) / len(of_role)), SCALED) if of_role else Alpha(prior, PRIOR)
    return alphas
