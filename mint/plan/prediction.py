"""Predicts the KL divergence of the model that a plan makes, with an interval.

    predicted KL = sum_i alpha_i * NRMSE_i^2   nats per token

Its error is a factor, up and down, of independent parts, added as squares of logarithms:

* sampling: alphas were probed on a few sequences. Every sequence has its own prediction, the sum over units of that
  sequence's KL per squared relative error. Units vary together from one sequence to the next, so a t interval over
  sequences is taken of the mean of these sums.
* form: units interact, alpha was measured at 3 bits, other text differs from the probed text, and a prior comes from
  another model. `TRIALS` lists the errors on real models: with probes, the measured KL was 0.86 to 1.09 times the
  predicted one above 0.2 nats, and 0.65 to 0.99 times below, since 3 bits are coarse for the errors of 8 bits.
  Without the veto, `dither` in little more than 2 bits: 3.66 predicted, 3.75 measured; all in 2 bits: 9.43, 10.3.
* compensation: errors are measured before compensation, and its gain is unknown until the model runs. A compensated
  plan is predicted to have the share of it (`relief`) that compensated plans had in `TRIALS`.

Plans edited by hand keep the evidence of the plan that they start from.
"""

# U units, S sequences

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, fsum, hypot, log, sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from mint.analysis.probes.probe_file import Probed
from mint.quality.estimates import Estimate

Floats = NDArray[np.float64]
# 97.5th percentiles of Student's t with 1, 2, ... degrees of freedom, and of the normal distribution
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.960
VALID_KL = 9.5  # nats, the largest trial; beyond it a sum over units keeps growing and a divergence does not

# (predicted KL, KL measured on a text), by origin of the alphas and by model; "compensated" alphas are probed, and the
# model is written with --rounding compensate. SmolLM2-135M-Instruct, re-expressed in two ways
# (tools/models/make_smollm2.py), ten budgets each, measured on 2,048 tokens of Austen and the Debian handbook:
# python -m tools.bench.prediction MODEL --text FILE --text FILE --tokens 2048 --window 256 --alphas probe or prior.
# The prior was fitted to `dither`, so only `diag` shows its error on another model. Compensated: 4 budgets of `diag`
# and 3 of `dither`, the last of which was stopped.
TRIALS: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "probed": {
        "dither": (
            (2.03, 1.92), (0.7, 0.605), (0.264, 0.271), (0.0917, 0.0655), (0.025, 0.0193),
            (0.00811, 0.00584), (0.00216, 0.00145), (0.00133, 0.000924), (0.000571, 0.000371), (0.000179, 0.000126),
        ),
        "diag": (
            (2.3, 2.51), (0.703, 0.705), (0.253, 0.252), (0.0845, 0.0797), (0.0261, 0.0228),
            (0.00814, 0.00807), (0.00245, 0.00206), (0.00142, 0.00119), (0.000587, 0.000512), (0.000122, 9.11e-05),
        ),
    },
    "prior": {
        "diag": (
            (1.79, 2.35), (0.656, 0.985), (0.209, 0.273), (0.0833, 0.109), (0.0228, 0.0314),
            (0.00781, 0.00909), (0.00193, 0.0025), (0.00119, 0.0016), (0.000608, 0.000613), (0.000223, 0.000297),
        ),
    },
    "compensated": {
        "diag": ((4.25, 1.71), (0.147, 0.0592), (0.00192, 0.000906), (5.79e-05, 3.23e-05)),
        "dither": ((5.47, 1.84), (0.0357, 0.0125)),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """The basis of a predicted KL."""

    probed: float = 0.0  # share of the prediction whose alphas were probed
    sequences: int = 0  # that the alphas were probed on
    spread: float = 0.0  # relative standard error of the probed share over the sequences
    compensated: bool = False  # the model will be written with compensation

    @property
    def relief(self) -> float:
        """The factor of a prediction for what compensation gains; 1 without it."""
        return exp(_bias("compensated")) if self.compensated else 1.0

    @property
    def factor(self) -> float:
        """The 95 % interval runs from the prediction divided by this factor to the prediction times this factor."""
        known = self.probed if self.sequences > 1 else 0.0  # one sequence has no spread
        sampling = known * student_percentile(self.sequences - 1) * self.spread if known else 0.0
        compensation = form_error("compensated") if self.compensated else 0.0
        return exp(hypot(sampling, known * form_error("probed"), (1 - known) * form_error("prior"), compensation))


NO_PROBES = Evidence()


def describe(kl: Estimate, evidence: Evidence) -> str:
    """The basis and the limits of a predicted KL, in words."""
    sampled = f" on {evidence.sequences} sequences, standard error {evidence.spread:.0%}" if evidence.sequences else ""
    prior = (
        f"{evidence.probed:.0%} from probes{sampled}"
        if evidence.probed
        else "the default sensitivities, fitted to one small model"
    )
    beyond = (
        f"; beyond {VALID_KL:g} nats it was never tried: it may tell which plan is closer, not how close"
        if kl.value > VALID_KL
        else ""
    )
    relief = f", times {evidence.relief:.2g} for compensation" if evidence.compensated else ""
    return f"{prior}{relief}; right to a factor of {float(f'{evidence.factor:.2g}'):g}{beyond}"


def predicted_kl(loss: float, evidence: Evidence) -> Estimate:
    """The KL divergence of a loss of the objective `output`, in nats per token, with its 95 % interval."""
    expected = loss * evidence.relief
    return Estimate(expected, expected / evidence.factor, expected * evidence.factor)


@cache
def form_error(alphas: str) -> float:
    """Half the 95 % interval of log(measured / predicted) for a new model, from the models in `TRIALS`.

    The errors of plans of one model are correlated, so Student's t has as many degrees of freedom as models.
    Compensated plans are compared with their relief, which is fitted and costs a degree of freedom.
    """
    fitted = alphas == "compensated"
    bias = _bias(alphas) if fitted else 0.0
    by_model = [fmean((ratio - bias) ** 2 for ratio in ratios) for ratios in _ratios(alphas)]
    freedom = len(by_model) - fitted
    return student_percentile(freedom) * sqrt(fsum(by_model) / freedom)


def _bias(alphas: str) -> float:
    """The mean over models of log(measured / predicted)."""
    return fmean(map(fmean, _ratios(alphas)))


@cache
def _ratios(alphas: str) -> list[list[float]]:
    """log(measured / predicted) of every trial, by model."""
    return [
        [log(measured / predicted) for predicted, measured in trials if predicted <= VALID_KL]
        for trials in TRIALS[alphas].values()
    ]


class Sampling:
    """The joint variation of the units' losses from one probed sequence to the next."""

    def __init__(self, paths: Sequence[str], probed: Probed | None) -> None:
        probes = probed.probes if probed else {}
        self._indices = np.array([index for index, path in enumerate(paths) if path in probes], np.int64)
        ordered = [probes[path] for path in paths if path in probes]
        # (U, S) KL of every sequence over the mean of all sequences: the factor of a unit's loss
        self._profiles = np.array([[kl / probe.kl if probe.kl > 0 else 0.0 for kl in probe.kls] for probe in ordered])

    def evidence(self, losses: Floats) -> Evidence:
        """The basis of the sum of `losses` (U,), which are in the order of the paths."""
        total, part = float(losses.sum()), losses[self._indices]
        if not len(part) or total <= 0:
            return NO_PROBES
        sums = part @ self._profiles
        sequences = len(sums)
        spread = float(sums.std(ddof=1) / sqrt(sequences) / sums.mean()) if sequences > 1 and part.any() else 0.0
        return Evidence(float(part.sum()) / total, sequences, spread)


def student_percentile(freedom: int) -> float:
    """The 97.5th percentile of Student's t; beyond the table, its expansion around the normal percentile."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    first = (_NORMAL**3 + _NORMAL) / 4
    second = (5 * _NORMAL**5 + 16 * _NORMAL**3 + 3 * _NORMAL) / 96
    return _NORMAL + first / freedom + second / freedom**2
